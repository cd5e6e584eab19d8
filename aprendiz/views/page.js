// The living half of the page: pictures, runs, the run panel, and messages beside the settings they concern.
//
// The settings themselves are Gradio's; this script draws what is in #aprendiz-live and #aprendiz-summary, from the routes beside it
// (docs/webui.md). All text goes in as text, never as HTML. No dependencies but panel.js.

const at = path => new URL(path, import.meta.url).href
const root = () => (window.gradioApp ? window.gradioApp() : document)
const find = id => root().querySelector('#' + CSS.escape(id))
const LIST_EVERY = 3000, EVENTS_EVERY = 1000, IDLE_EVERY = 10000  // milliseconds
const PAGE = 60  // pictures asked for at a time

let words = {}, panelTexts = {}, settings = []
const say = (key, fields = {}) => (words[key] || key).replace(/{(\w+)}/g, (all, name) => fields[name] ?? all)

/** An element: make('button', {class: 'main', onclick: f}, 'Start'). Children are elements or texts. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (value === true) element.setAttribute(name, '')
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value)
  }
  element.append(...children.filter(child => child !== null && child !== undefined && child !== false))
  return element
}

/** Put these children in place of what is there; what is nothing is left out. */
const fill = (element, ...children) => element.replaceChildren(...children.filter(child => child !== null && child !== undefined && child !== false))

/** Ask a route; an object. What a person can mend is thrown with its `problems`. */
async function ask(path, body) {
  const how = body === undefined ? {} : {method: 'POST', body: JSON.stringify(body), headers: {'Content-Type': 'application/json'}}
  const answer = await fetch(at(path), how)
  const told = await answer.json().catch(() => ({problems: []}))
  if (!answer.ok) throw Object.assign(new Error(told.problems?.[0]?.text || answer.statusText), {problems: told.problems || []})
  return told
}

// Where things are drawn

const places = {
  state: make('p', {class: 'ap-note', role: 'status', 'aria-live': 'polite', hidden: true}),
  panel: make('div', {class: 'ap-panel'}),
  runs: make('section', {class: 'ap-runs'}),
  pictures: make('section', {class: 'ap-pictures'}),
}

/** Put what we draw into the page, again where a host has drawn its part anew. Whether it is there and can be seen. */
function attach() {
  const live = find('aprendiz-live')
  if (!live) return false
  if (places.panel.parentNode !== live) live.replaceChildren(places.state, places.panel, places.runs, places.pictures)
  return live.offsetParent !== null
}

function note(text, bad = false) {
  places.state.textContent = text
  places.state.hidden = !text
  places.state.classList.toggle('ap-bad', bad)
}

// Problems beside the settings

function clearProblems() {
  for (const old of root().querySelectorAll('#aprendiz-settings .ap-problem, #aprendiz-summary > *')) old.remove()
}

/** Show each problem under its setting, unfolding what hides it; those of no setting above the buttons. */
function showProblems(problems, lines = []) {
  clearProblems()
  const summary = find('aprendiz-summary')
  const method = new Set(settings.filter(one => one.method && !hiddenMethod(one)).map(one => one.id))
  let first = null
  for (const problem of problems) {
    const text = make('p', {class: problem.warning ? 'ap-problem ap-warning' : 'ap-problem', role: 'alert'}, problem.text)
    const one = settings.find(one => one.where === problem.where && (!one.method || method.has(one.id)))
    const control = one ? find(one.id) : problem.where === 'method.name' ? find('aprendiz-method-name') : null
    if (control) {
      control.append(text)
      unfold(control)
      first = first || control
    } else if (summary && summary.childElementCount < 40) summary.append(text)
  }
  for (const line of lines) summary?.append(make('p', {class: 'ap-soft'}, line))
  first?.scrollIntoView({block: 'center', behavior: 'auto'})
}

const hiddenMethod = one => { const control = find(one.id); return !control || control.offsetParent === null && !folded(control) }
const folded = control => control.closest('[id^="aprendiz-section-"]') !== null

function unfold(control) {
  if (control.offsetParent !== null) return
  const section = control.closest('[id^="aprendiz-section-"]')
  section?.querySelector('button, .label-wrap')?.click()
}

// Settings: shown only where they count, marked where they are changed

function valueOf(one) {
  const control = find(one.id)
  const input = control?.querySelector('textarea, input, select')
  if (!input) return undefined
  return input.type === 'checkbox' ? input.checked : input.type === 'number' ? (input.value === '' ? null : Number(input.value)) : input.value
}

function markSettings() {
  for (const one of settings) {
    const control = find(one.id)
    if (!control) continue
    const value = valueOf(one)
    control.classList.toggle('ap-changed', value !== undefined && String(value ?? '') !== String(one.default ?? ''))
    if (one.when) {
      const sibling = settings.find(other => other.id === one.when.id)
      control.classList.toggle('ap-idle', sibling && !one.when.values.map(String).includes(String(valueOf(sibling))))
    }
  }
}

/** Set a Gradio text component from outside. */
function write(id, value) {
  const input = find(id)?.querySelector('textarea, input')
  if (!input) return
  const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), 'value').set
  set.call(input, value)
  input.dispatchEvent(new Event('input', {bubbles: true}))
}

const press = id => { const part = find(id); (part?.tagName === 'BUTTON' ? part : part?.querySelector('button'))?.click() }

// Pictures

const album = {values: null, folder: '', total: 0, shown: [], first: [], problems: {}, drafts: {}, asked: 0}
const lazy = new IntersectionObserver(seen => {
  for (const one of seen) if (one.isIntersecting) { one.target.src = one.target.dataset.src; lazy.unobserve(one.target) }
}, {rootMargin: '400px'})

async function loadPictures(values, more = false) {
  const asked = ++album.asked
  if (album.folder !== values.data?.path) album.drafts = {}
  album.values = values
  if (!values.data?.path) { album.folder = ''; album.shown = []; return drawPictures() }
  try {
    const told = await ask('pictures', {values, from: more ? album.shown.length : 0, count: PAGE, first: album.first})
    if (asked !== album.asked) return
    Object.assign(album, {...told, shown: more ? [...album.shown, ...told.pictures] : told.pictures, other: told.problems, pictures: undefined})
    for (const problem of root().querySelectorAll('#aprendiz-data-path .ap-problem')) problem.remove()
  } catch (error) {
    if (asked !== album.asked) return
    album.folder = ''; album.shown = []
    showProblems(error.problems || [])
  }
  drawPictures()
}

function drawPictures() {
  const here = places.pictures, typing = here.contains(document.activeElement) ? document.activeElement : null
  if (!album.folder) return fill(here, make('h3', {}, say('pictures')), make('p', {class: 'ap-soft'}, say('no_folder')))
  const troubled = new Set([...Object.keys(album.problems), ...album.shown.filter(one => one.problems.length).map(one => one.name)])
  const counted = say(troubled.size || album.troubled ? 'counted' : 'counted_well',
    {total: album.total, captioned: album.captioned, troubled: Math.max(troubled.size, album.troubled || 0)})
  fill(here,
    make('h3', {}, say('pictures')), make('p', {class: 'ap-soft', id: 'aprendiz-counted'}, counted),
    ...(album.other || []).map(problem => make('p', {class: problem.warning ? 'ap-problem ap-warning' : 'ap-problem'}, problem.text)),
    bench(), make('div', {class: 'ap-grid'}, ...album.shown.map(drawPicture)),
    album.shown.length < album.total && make('button', {onclick: () => loadPictures(album.values, true)}, say('more')))
  if (typing?.dataset.name) {  // drawn anew while somebody writes: the cursor stays where it was
    const again = [...here.querySelectorAll('textarea')].find(one => one.dataset.name === typing.dataset.name)
    again?.focus({preventScroll: true})
    again?.setSelectionRange(typing.selectionStart, typing.selectionEnd)
  }
}

function drawPicture(one) {
  const query = new URLSearchParams({folder: album.folder, name: one.name, v: one.stamp})
  const image = make('img', {alt: one.taught[0] || one.name, 'data-src': at('thumbnail?' + query), width: 128, height: 128})
  lazy.observe(image)
  const saved = make('span', {class: 'ap-soft', 'aria-live': 'polite'})
  const text = make('textarea', {rows: 3, 'aria-label': say('caption_of', {name: one.name}), placeholder: one.taught[0] || '',
    readonly: !one.editable, title: one.editable ? null : say('elsewhere'), maxlength: 20000, 'data-name': one.name})
  text.value = album.drafts[one.name] ?? one.caption ?? ''
  const problems = make('div', {})
  const tell = list => problems.replaceChildren(...list.map(problem =>
    make('p', {class: problem.warning ? 'ap-problem ap-warning' : 'ap-problem', role: 'alert'}, problem.text)))
  tell(album.problems[one.name] || one.problems)
  let waiting = null
  const save = async () => {
    clearTimeout(waiting)
    if (text.value === (one.caption ?? '')) return void delete album.drafts[one.name]
    const value = text.value
    try {
      const told = await ask('captions', {folder: album.folder, captions: {[one.name]: value}})
      tell(told.problems)
      if (one.name in told.captions) {
        Object.assign(one, {caption: told.captions[one.name], problems: []})
        delete album.problems[one.name]
        if (album.drafts[one.name] === value) delete album.drafts[one.name]
        saved.textContent = say('saved')
      }
    } catch (error) { tell(error.problems?.length ? error.problems : [{text: say('lost')}]) }
  }
  text.addEventListener('input', () => { album.drafts[one.name] = text.value; saved.textContent = ''; clearTimeout(waiting); waiting = setTimeout(save, 800) })
  text.addEventListener('blur', save)
  return make('figure', {class: troubledClass(one)}, make('a', {href: at('picture?' + query), target: '_blank', rel: 'noopener'}, image),
    make('figcaption', {class: 'ap-name', title: one.name}, one.name, ' ', saved), text, problems)
}

const troubledClass = one => (album.problems[one.name] || one.problems).length ? 'ap-trouble' : ''

/** Find and replace, and a word in front, over all captions of the folder. */
function bench() {
  const from = make('input', {type: 'text', 'aria-label': say('replace_find'), placeholder: say('replace_find')})
  const to = make('input', {type: 'text', 'aria-label': say('replace_by'), placeholder: say('replace_by')})
  const change = async edit => {
    let all = []
    for (let start = 0; start < album.total; start += 200) {
      all = all.concat((await ask('pictures', {values: album.values, from: start, count: 200})).pictures)
    }
    const captions = {}
    for (const one of all) {
      const value = edit(one.caption ?? '')
      if (one.editable && value !== (one.caption ?? '')) captions[one.name] = value
    }
    const names = Object.keys(captions)
    for (let start = 0; start < names.length; start += 200) {
      await ask('captions', {folder: album.folder, captions: Object.fromEntries(names.slice(start, start + 200).map(name => [name, captions[name]]))})
    }
    note(say('replaced', {count: names.length}))
    await loadPictures(album.values)
  }
  const guarded = edit => () => change(edit).catch(error => note(error.message || say('lost'), true))
  return make('details', {class: 'ap-bench'}, make('summary', {}, say('replace')), make('div', {class: 'ap-row'}, from, to,
    make('button', {onclick: guarded(text => from.value ? text.split(from.value).join(to.value) : text)}, say('replace')),
    make('button', {onclick: guarded(text => from.value && !text.includes(from.value) ? [from.value, text].filter(Boolean).join(', ') : text)},
      say('add_front'))))
}

/** Check the whole job: problems go beside settings and pictures, the forecast above the buttons. */
let checking = 0
async function check(values) {
  const mine = ++checking
  showProblems([], [say('checking')])
  await loadPictures(values)
  try {
    let told = await ask('check', {values})
    while (!told.done && mine === checking) {
      await new Promise(done => setTimeout(done, 500))
      told = await ask('check', {values})
    }
    if (mine !== checking) return
    album.problems = {}
    const known = new Set(settings.map(one => one.where))
    for (const problem of told.problems) if (!known.has(problem.where)) (album.problems[problem.where] ||= []).push(problem)
    album.first = Object.keys(album.problems)
    if (album.first.length) await loadPictures(values)
    drawPictures()
    const names = new Set(album.shown.map(one => one.name))
    const elsewhere = told.problems.filter(problem => !names.has(problem.where))
    const stopping = told.problems.some(problem => !problem.warning)
    showProblems(elsewhere, [...(told.forecast.lines || []), ...(stopping ? [] : [say('fine')])])
  } catch (error) { showProblems(error.problems?.length ? error.problems : [{text: say('lost')}]) }
}

// Runs

const shelf = {runs: [], chosen: null, compared: new Set(), offset: 0, panel: null, listed: 0, fresh: 0, busy: false, dead: false}

async function listRuns() {
  shelf.listed = Date.now()
  shelf.runs = (await ask('runs')).runs
  if (!shelf.chosen) {
    const busy = shelf.runs.find(run => run.busy)
    if (busy) choose(busy.name)
  }
  drawRuns()
}

function drawRuns() {
  const focused = document.activeElement?.dataset?.key
  const rows = shelf.runs.map(run => make('li', {class: run.name === shelf.chosen ? 'ap-run ap-chosen' : 'ap-run', 'data-run': run.name},
    make('button', {class: 'ap-open', onclick: () => choose(run.name), 'aria-pressed': String(run.name === shelf.chosen), 'data-key': 'open ' + run.name},
      run.picture ? make('img', {src: at(filePath(run.name, run.picture)), alt: '', width: 40, height: 40}) : make('span', {class: 'ap-blank'}),
      make('span', {class: 'ap-grow'}, make('b', {}, run.name), make('br'),
        make('span', {class: 'ap-soft ap-num'}, [say(run.state), run.steps ? say('steps_done', run) : '', run.method, run.base].filter(Boolean).join(' · ')))),
    run.file && make('a', {href: at(filePath(run.name, run.file)), download: true, title: say('download'), 'data-key': 'file ' + run.name}, say('download')),
    !run.busy && run.state !== 'finished' && make('button', {onclick: () => act(run.name, 'resume'), 'data-key': 'resume ' + run.name}, say('resume')),
    make('button', {onclick: () => useSettings(run.name), 'data-key': 'use ' + run.name}, say('again')),
    make('label', {class: 'ap-compare'}, make('input', {type: 'checkbox', checked: shelf.compared.has(run.name), 'data-key': 'compare ' + run.name,
      onchange: event => compareRun(run.name, event.target.checked)}), say('compare')),
    !run.busy && make('button', {class: 'ap-danger', onclick: event => confirmDelete(run.name, event.target), 'data-key': 'delete ' + run.name}, say('delete'))))
  if (places.runs.querySelector('.ap-confirm')) return  // a question is being asked
  fill(places.runs, make('h3', {}, say('runs')),
    rows.length ? make('ul', {}, ...rows) : make('p', {class: 'ap-soft'}, say('no_runs')), comparison)
  if (focused) places.runs.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus()
}

const filePath = (name, file) => `runs/${encodeURIComponent(name)}/files/${String(file).split('/').map(encodeURIComponent).join('/')}`

function confirmDelete(name, button) {
  const no = make('button', {onclick: () => { box.remove(); drawRuns() }}, say('delete_no'))
  const box = make('span', {class: 'ap-confirm', role: 'alertdialog'}, say('really', {name}), ' ',
    make('button', {class: 'ap-danger', onclick: () => { box.remove(); act(name, 'delete') }}, say('delete_yes')), ' ', no)
  button.replaceWith(box)
  no.focus()
}

async function act(name, what) {
  try {
    await ask(`runs/${encodeURIComponent(name)}/${what}`, {})
    note('')
    if (what === 'delete') {
      compareRun(name, false)
      if (shelf.chosen === name) choose(null)
    } else choose(name)
  } catch (error) { note(error.message || say('lost'), true) }
  await listRuns().catch(() => {})
}

function useSettings(name) {
  write('aprendiz-wanted', name)
  setTimeout(() => press('aprendiz-fill'), 50)
}

/** Show a run in the panel and follow it. */
function choose(name) {
  Object.assign(shelf, {chosen: name, offset: 0, panel: null, fresh: 0, busy: false, dead: false})
  places.panel.replaceChildren()
  remember(name)
  if (name) {
    shelf.panel = panelOf(name)
    places.panel.append(shelf.panel)
    follow().catch(() => {})
  }
  drawRuns()
}

const remember = name => { try { name ? localStorage.setItem('aprendiz-run', name) : localStorage.removeItem('aprendiz-run') } catch { /* a browser that keeps nothing */ } }
const remembered = () => { try { return localStorage.getItem('aprendiz-run') } catch { return null } }

let following = false
async function follow() {
  if (!shelf.chosen || following) return
  following = true
  const name = shelf.chosen
  try {
    for (;;) {
      const told = await ask(`runs/${encodeURIComponent(name)}/events?from=${shelf.offset}`)
      if (shelf.chosen !== name) break
      if (told.next < shelf.offset) shelf.panel.clear()
      const more = told.events.length > 0 && told.next > shelf.offset
      shelf.offset = told.next
      shelf.busy = ['queued', 'running', 'paused'].includes(told.state)
      feed(shelf.panel, told)
      if (!more) break
    }
    shelf.fresh = Date.now()
  } catch (error) {
    if (shelf.chosen === name && error.problems?.length) { choose(null); note(error.message, true) } else throw error
  } finally { following = false }
}

// The one run panel of all doors

function panelOf(name) {
  const panel = document.createElement('aprendiz-run')
  panel.texts = panelTexts
  panel.name = name
  panel.fileUrl = file => at(filePath(name, file))
  panel.addEventListener('tell', event => {
    const command = event.detail.command
    ask(`runs/${encodeURIComponent(name)}/${command === 'start' ? 'resume' : 'tell'}`, command === 'start' ? {} : {command})
      .then(() => { note(''); shelf.dead = false; return Promise.all([follow(), listRuns()]) })
      .catch(error => note(error.message || say('lost'), true))
  })
  ask(`runs/${encodeURIComponent(name)}/job`).then(job => { panel.job = job }).catch(() => {})
  return panel
}

function feed(panel, told) {
  panel.take(told.events)
  if (told.state === 'dead' && !shelf.dead) panel.take([{event: 'failed', dead: true, problems: told.problems}])
  shelf.dead = told.state === 'dead'
  panel.state = told.state
}

// Comparing

const comparison = make('div', {class: 'ap-comparison'})
const curves = new Map()

async function compareRun(name, on) {
  on ? shelf.compared.add(name) : shelf.compared.delete(name)
  if (on && !curves.has(name)) {
    const found = {losses: [], samples: []}
    curves.set(name, found)
    for (let offset = 0, more = true; more;) {
      const told = await ask(`runs/${encodeURIComponent(name)}/events?from=${offset}`).catch(() => ({events: [], next: offset}))
      for (const event of told.events) {
        if (event.event === 'step' && event.loss !== null) found.losses.push([event.step, event.loss])
        if (event.event === 'sample') found.samples.push(event)
      }
      more = told.next > offset
      offset = told.next
    }
  }
  if (!on) curves.delete(name)
  drawComparison()
}

const COLOURS = ['#c2570c', '#2563b0', '#1f8a4c', '#8a3ab9', '#a08000', '#b02a5b']

function drawComparison() {
  const names = [...shelf.compared].filter(name => curves.has(name))
  if (names.length < 1) return comparison.replaceChildren()
  const all = names.flatMap(name => smooth(curves.get(name).losses))
  const width = Math.max(280, comparison.clientWidth || 560), height = 180
  const last = Math.max(1, ...all.map(([step]) => step)), top = Math.max(1e-6, ...all.map(([, loss]) => loss)) * 1.05
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
  svg.setAttribute('role', 'img')
  svg.setAttribute('aria-label', `${say('loss')}: ${names.join(', ')}`)
  names.forEach((name, index) => {
    const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline')
    line.setAttribute('points', smooth(curves.get(name).losses).map(([step, loss]) =>
      `${(40 + (width - 48) * step / last).toFixed(1)},${(8 + (height - 30) * (1 - loss / top)).toFixed(1)}`).join(' '))
    line.setAttribute('fill', 'none')
    line.setAttribute('stroke', COLOURS[index % COLOURS.length])
    line.setAttribute('stroke-width', '2')
    if (index % 2) line.setAttribute('stroke-dasharray', '6 3')
    svg.append(line)
  })
  for (const [text, x, y] of [[top.toFixed(2), 2, 16], ['0', 2, height - 22], [String(last), width - 40, height - 6]]) {
    const label = document.createElementNS('http://www.w3.org/2000/svg', 'text')
    label.setAttribute('x', x); label.setAttribute('y', y)
    label.textContent = text
    svg.append(label)
  }
  comparison.replaceChildren(make('h3', {}, say('loss')), svg, ...names.map((name, index) => {
    const samples = curves.get(name).samples, end = Math.max(-1, ...samples.map(one => one.step))
    return make('div', {class: 'ap-row'}, make('b', {style: `color:${COLOURS[index % COLOURS.length]}`}, name),
      ...samples.filter(one => one.step === end).slice(0, 6).map(one =>
        make('img', {src: at(filePath(name, one.file)), alt: one.prompt || '', title: one.prompt || '', width: 96, height: 96})))
  }))
}

/** A running mean, at most 300 points. */
function smooth(points) {
  let mean = null
  const soft = points.map(([step, loss]) => [step, mean = mean === null ? loss : 0.93 * mean + 0.07 * loss])
  const every = Math.max(1, Math.floor(soft.length / 300))
  return soft.filter((_, index) => index % every === 0 || index === soft.length - 1)
}

// What Gradio's side answers

window.aprendizPage = {
  answer(text) {
    let told
    try { told = JSON.parse(text) } catch { return }
    if (told.problems) showProblems(told.problems)
    else if (told.started) {
      clearProblems()
      note('')
      choose(told.started)
      listRuns().catch(() => {})
      places.panel.scrollIntoView({block: 'nearest'})
    } else if (told.check) check(told.check)
    else if (told.look) loadPictures(told.look)
    else if (told.filled) { clearProblems(); note(say('filled', {name: told.filled})); setTimeout(() => { markSettings(); press('aprendiz-look') }, 300) }
  },
}

// The clock

let waitingLook = null
function listen() {
  const page = find('aprendiz')
  if (!page || page.dataset.heard) return
  page.dataset.heard = 'yes'
  const look = () => { clearTimeout(waitingLook); waitingLook = setTimeout(() => press('aprendiz-look'), 600) }
  for (const kind of ['input', 'change', 'focusout', 'click']) {
    page.addEventListener(kind, event => {
      setTimeout(markSettings, 50)
      if (kind === 'input' && event.target.closest?.('#aprendiz-data-path, #aprendiz-data-trigger, #aprendiz-data-caption')) look()
    })
  }
  if (find('aprendiz-data-path')?.querySelector('textarea, input')?.value) look()
}

async function tick() {
  try {
    if (!document.hidden && attach()) {
      listen()
      if (!shelf.listed) {
        const before = remembered()
        await listRuns()
        if (!shelf.chosen && shelf.runs.some(run => run.name === before)) choose(before)
        drawPictures()
        markSettings()
      } else if (Date.now() - shelf.listed > (shelf.runs.some(run => run.busy) ? LIST_EVERY : IDLE_EVERY)) await listRuns()
      if (shelf.chosen && Date.now() - shelf.fresh > (shelf.busy ? EVENTS_EVERY - 50 : LIST_EVERY)) await follow()
      if (places.state.dataset.lost) { delete places.state.dataset.lost; note('') }
    }
  } catch { places.state.dataset.lost = 'yes'; note(say('lost'), true) }
  setTimeout(tick, EVENTS_EVERY)
}

async function begin() {
  document.head.append(make('link', {rel: 'stylesheet', href: at('page.css')}))
  const [told] = await Promise.all([ask('words'), import(at('panel.js'))])
  words = told.words
  settings = told.settings
  panelTexts = told.panel
  tick()
}

begin().catch(() => setTimeout(() => begin(), 2000))
