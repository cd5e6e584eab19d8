// Brings the page (aprendiz/views/page.js) into the host once the host's own stands, and does for it what only
// the host's page can: use a result in txt2img, read how pictures are drawn there, show the lists anew.

{
  const field = id => gradioApp().querySelector(`#${id} textarea, #${id} input`)
  const number = id => { const text = field(id)?.value; return text === '' || isNaN(text) ? undefined : Number(text) }

  /** The sampler in our names: 'DPM++ 2M' with 'Karras' is dpm++_2m_karras. */
  const samplers = () => {
    const name = (field('txt2img_sampling')?.value || '').toLowerCase().replaceAll(' ', '_')
    const schedule = (field('txt2img_scheduler')?.value || '').toLowerCase().replaceAll(' ', '_')
    return [`${name}_${schedule}`, name]
  }

  window.aprendizHost = {
    /** Put what calls a result into the prompt of txt2img, once, and go there. */
    use(prompt) {
      const text = field('txt2img_prompt')
      if (prompt && !text.value.includes(prompt)) {
        text.value = [text.value.trim(), prompt].filter(Boolean).join(' ')
        updateInput(text)
      }
      this.ended()
      switch_to_txt2img()
    },

    /** A result has been placed: the lists of extra networks are shown anew. */
    ended() {
      for (const tab of ['txt2img', 'img2img']) {
        const button = ['_internal', ''].map(end => gradioApp().querySelector(`#${tab}_lora_extra_refresh${end}`)).find(Boolean)
        button?.click()
      }
    },

    /** How pictures are drawn in txt2img, as settings of our samples; samplers: names, the most exact first. */
    read() {
      const seed = number('txt2img_seed')
      return {samplers: samplers(), values: {
        'samples.sample_prompts': field('txt2img_prompt')?.value.replace(/\s*\n\s*/g, ' ').trim() || undefined,
        'samples.negative_prompt': field('txt2img_neg_prompt')?.value.replace(/\s*\n\s*/g, ' ').trim(),
        'samples.sample_seed': seed >= 0 ? seed : undefined, 'samples.sampler_steps': number('txt2img_steps'),
        'samples.guidance': number('txt2img_cfg_scale'),
        'samples.sample_width': number('txt2img_width'), 'samples.sample_height': number('txt2img_height')}}
    },
  }

  /** The host mounts the page's routes after its own page may be open, and a browser never asks again for a module that failed, nor for
   * one that this one imports: the next time they have other names. */
  const bring = (again = 0) => import(new URL(again ? `./aprendiz/again-${again}/page.js` : './aprendiz/page.js', location.href).href)
    .catch(() => setTimeout(bring, Math.min(5, 2 ** again) * 1000, again + 1))

  /** In AUTOMATIC1111 and reForge the page stands in the left half of the Train tab; while it is shown it takes the other half too.
   * Not by a selector: one that asks what an element contains is asked again at every change of the host's page. */
  onUiLoaded(() => {
    const tab = gradioApp().querySelector('#aprendiz-tab'), row = tab?.closest('#train_tabs')?.parentElement
    if (row) new MutationObserver(() => row.classList.toggle('aprendiz-wide', tab.style.display === 'block')).observe(tab, {attributeFilter: ['style']})
  })

  /** The host's own page is not to wait for ours: once it has stood still for a moment. */
  let brought = false
  onUiLoaded(() => onAfterUiUpdate(() => {
    if (!brought) bring()
    brought = true
  }))
}
