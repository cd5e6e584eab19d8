// Brings the living half of the page (aprendiz/views/page.js) into the host once its own page stands.
onUiLoaded(() => { import(new URL('./aprendiz/page.js', location.href).href) })
