// The one run panel of all doors: <aprendiz-run>, a web component without dependencies.
//
//   const panel = document.createElement('aprendiz-run')
//   panel.texts = {...}            texts by key in the person's language (aprendiz/views/panel.py); English where it is not set
//   panel.fileUrl = path => url    where a file of the run's folder is found
//   panel.name, panel.job          name, and the job's values (job.json): what stands in the head
//   panel.state = 'running'        where the door knows it better than the events do
//   panel.commands = ['pause', ...]  the buttons this door can serve; null for all but 'open' and 'node'
//   panel.take(events)             events in order, each once; of steps that a resumed run repeats the later ones count
//   panel.passedOn(command)        the run was told; said until its events show it
//   panel.clear()                  begin anew
//   panel.addEventListener('tell', e => e.detail.command)   pause, resume, sample, save, stop, start, open, node
//
// Nothing is drawn more than once a frame. Text from outside goes in as text, never as HTML.

const ENGLISH = {
  queued: 'queued', running: 'running', paused: 'paused', stopped: 'stopped', finished: 'finished', failed: 'failed', dead: 'dead',
  pause: 'Pause', resume: 'Resume', sample: 'Sample now', save: 'Save now', stop: 'Stop', start: 'Go on', open: 'Open folder',
  stop_hint: 'Finishes the step and saves; it can go on later.', node: 'Make a node from these settings', settings: 'Settings',
  more: 'Messages', step: 'step {step} of {steps}', speed: '{speed} steps/s', left: '{time} left', memory: '{memory} GB, peak {peak}',
  loss: 'Loss', learned: 'What it learned', mark: 'The upright mark is the base model, same prompts and seeds.', was: 'was {value}',
  subject: 'The subject', prompt: 'Follows the prompt', kept: 'Other pictures kept', before: 'before', at_step: 'step {step}',
  best: 'best', shown_step: 'Step shown', validation: 'validation {loss}', chart: 'Loss from {first} to {last} at step {step}',
  say_queued: 'Waiting for its turn: {ahead} before this one.', say_starting: 'Starting', say_checking: 'Checking the pictures',
  say_pictures: 'Encoding pictures {done} of {total}', say_captions: 'Encoding captions {done} of {total}',
  say_prior: "Drawing the base's own pictures {done} of {total}", say_speed: 'Measuring how long a step takes',
  say_conditions: 'Making condition pictures {done} of {total}', say_first: 'Opening the model; then comes the first step.',
  say_early: 'It learns. After a few more steps this tells how the loss moves.',
  say_falling: 'The loss is still falling: {before} to {after} over the last steps.',
  say_flat: 'The loss has hardly moved over the last steps. You can stop here or let it finish; look at the pictures.',
  say_validation: 'Step {step} has the lowest loss on the pictures kept apart so far, {loss}.',
  say_worse: 'The loss on the pictures kept apart has not fallen since step {step}: that state may be the best one.',
  say_paused: 'Paused; the memory is free. Resume goes on from step {step}.',
  say_lent: 'Paused after step {step} while pictures are drawn on the same card; it goes on by itself.',
  say_told: 'Passed on. The run hears it after the step that it is at.',
  say_unbegun: 'Stopped before the first step. Go on begins it.',
  say_stopped: 'Stopped after step {step}, and saved. Go on takes it up from there.',
  say_dead: 'Its worker ended without a word. Go on takes it up from the last saved state.',
  say_finished: 'Done after {step} steps. The result is {file}.',
}
const SCORES = [['subject', 'subject_after', 'subject_before'], ['prompt', 'prompt_after', 'prompt_before'], ['kept', 'kept', null]]
const BUTTONS = {
  queued: ['stop', 'start'], running: ['pause', 'sample', 'save', 'stop'], paused: ['resume', 'stop'],
  stopped: ['start'], failed: ['start'], dead: ['start'], finished: [],
}
const ENDED = ['stopped', 'failed', 'dead', 'finished']
const DONE = {pause: 'paused', resume: 'resumed', sample: 'sample', save: 'checkpoint', stop: 'stopped'}  // the event that says so
const AFTER = ['open', 'node']          // stand at the end, in every state
const SMOOTH = 0.93                     // of the strong line, for each step
const PAD = {left: 44, right: 10, top: 10, bottom: 24}
const HEIGHT = 220
const FRAME = 2                         // milliseconds of a frame that panels may take, but for the one that is being drawn
const NS = 'http://www.w3.org/2000/svg'

const STYLE = `
:host { --bg: var(--comfy-menu-bg, var(--block-background-fill, #ffffff)); --ink: var(--fg-color, var(--body-text-color, #1d2129));
  --soft: color-mix(in srgb, var(--ink) 66%, var(--bg)); --line: color-mix(in srgb, var(--ink) 14%, var(--bg));
  --lift: color-mix(in srgb, var(--ink) 5%, var(--bg)); --accent: var(--p-primary-color, var(--color-accent, #c2570c));
  --good: #1f8a4c; --bad: #c62f2f; display: block; container-type: inline-size; background: var(--bg); color: var(--ink);
  font: 13px/1.45 Inter, system-ui, sans-serif; text-align: start }
:host([dark]) { --accent: var(--p-primary-color, var(--color-accent, #f0954b)); --good: #52c284; --bad: #ef6b6b }
* { box-sizing: border-box } [hidden] { display: none !important }
section { padding: 16px } h2 { font-size: 15px; margin: 0; font-weight: 600; overflow-wrap: anywhere }
h3 { font-size: 12px; font-weight: 600; margin: 12px 0 4px; color: var(--soft) } p { margin: 0 }
.row { display: flex; align-items: center; gap: 8px; flex-wrap: wrap } .push { margin-inline-start: auto } .soft { color: var(--soft) }
.num { font-variant-numeric: tabular-nums } .figures { min-height: 20px }
.chip { border: 1px solid var(--line); border-radius: 99px; padding: 0 8px; font-size: 12px; color: var(--soft) }
.state { color: var(--accent); border-color: currentColor } .failed .state, .dead .state { color: var(--bad) }
.bar { height: 6px; border-radius: 3px; background: var(--line); margin: 12px 0 8px; overflow: hidden }
.bar i { display: block; height: 100%; width: 0; background: var(--accent); border-radius: 3px }
.say { background: var(--lift); border-inline-start: 3px solid var(--accent); padding: 8px 12px; margin: 12px 0; white-space: pre-line; overflow-wrap: anywhere }
.failed .say, .dead .say { border-color: var(--bad) }
button { font: inherit; color: inherit; background: var(--lift); border: 1px solid var(--line); border-radius: 6px; padding: 4px 12px; min-height: 32px; cursor: pointer }
button:hover { border-color: var(--soft) } button:disabled { opacity: .5; cursor: default } button[data-command=stop] { color: var(--bad) }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
.grid { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr) } @container (min-width: 720px) { .grid { grid-template-columns: 3fr 2fr } }
svg { width: 100%; height: ${HEIGHT}px; display: block; touch-action: none } svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums }
.read { min-height: 18px; font-size: 12px } .pics { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px }
figure { margin: 0 } figcaption { font-size: 12px; color: var(--soft); margin-top: 4px }
.pics img { width: 100%; aspect-ratio: 1; object-fit: contain; border: 1px solid var(--line); border-radius: 4px; display: block; background: var(--lift); cursor: zoom-in }
input[type=range] { width: 100%; min-height: 24px; accent-color: var(--accent) }
.score { display: grid; grid-template-columns: minmax(6em, 11em) 1fr 8.5em; gap: 8px; align-items: center; padding: 4px 0 }
.meter { position: relative; height: 8px; border-radius: 4px; background: var(--line) } .meter i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: var(--accent) }
.meter u { position: absolute; width: 2px; top: -3px; bottom: -3px; background: var(--ink) }
details { margin-top: 12px } summary { cursor: pointer; color: var(--soft) } details ul { margin: 8px 0; padding-inline-start: 16px; max-height: 200px; overflow: auto; overflow-wrap: anywhere }
dialog { border: 0; padding: 0; max-width: 96vw; max-height: 96vh; background: var(--bg); color: var(--ink) } dialog::backdrop { background: #000b } dialog img { display: block; max-width: 96vw; max-height: 84vh; min-width: min(384px, 90vw); image-rendering: auto } dialog p { padding: 8px 12px }
`

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}
const draw = (tag, attributes, text) => {
  const node = document.createElementNS(NS, tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  if (text !== undefined) node.textContent = text
  return node
}
const clock = seconds => {
  const whole = Math.max(0, Math.round(seconds)), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = String(whole % 60).padStart(2, '0')
  return h ? `${h}:${String(m).padStart(2, '0')}:${s}` : `${m}:${s}`
}

/** A step line for `width` columns of pixels: of each column its first, least, greatest and last point, so that no spike is lost. */
export function thin(points, from, to, width) {
  const columns = Math.max(1, Math.floor(width))
  if (points.length <= 2 * columns) return points
  const kept = []
  let column = -1, bucket = []
  const flush = () => {
    if (!bucket.length) return
    let low = bucket[0], high = bucket[0]
    for (const point of bucket) { if (point[1] < low[1]) low = point; if (point[1] > high[1]) high = point }
    for (const point of [...new Set([bucket[0], low, high, bucket[bucket.length - 1]])].sort((a, b) => a[0] - b[0])) kept.push(point)
    bucket = []
  }
  for (const point of points) {
    const at = Math.floor((point[0] - from) / Math.max(1e-9, to - from) * columns)
    if (at !== column) { flush(); column = at }
    bucket.push(point)
  }
  flush()
  return kept
}

/** Panels that want to be drawn, each once; where there are many they share the frames, so that none takes long. */
const turns = new Map()
function inTurn(panel, work) {
  if (!turns.size) requestAnimationFrame(drawSome)
  turns.set(panel, work)
}
function drawSome() {
  const until = performance.now() + FRAME
  for (const [panel, work] of [...turns]) {
    turns.delete(panel)
    work()
    if (performance.now() > until) break
  }
  if (turns.size) requestAnimationFrame(drawSome)
}

class Run extends HTMLElement {
  #texts = ENGLISH; #name = ''; #job = null; #state = null; #fileUrl = path => path; #commands = null; #chosen = null; #at = null; #figures = null
  #parts = null; #watcher = null; #shown = {}

  constructor() {
    super()
    this.attachShadow({mode: 'open'})
    this.clear(false)
  }

  set texts(given) { this.#texts = {...ENGLISH, ...given}; this.#parts = null; this.#soon() }
  set name(given) { this.#name = given; this.#soon() }
  get name() { return this.#name }
  set job(given) { this.#job = given; this.#soon() }
  set state(given) { this.#state = given; this.#soon() }
  get state() { return this.#state ?? this.#figures.state }
  set fileUrl(given) { this.#fileUrl = given; this.#soon() }
  set commands(given) { this.#commands = given; this.#soon() }

  connectedCallback() {
    this.#watcher = new ResizeObserver(() => this.#soon())
    this.#watcher.observe(this)
    this.#soon()
  }

  disconnectedCallback() { this.#watcher?.disconnect() }

  clear(redraw = true) {
    this.#figures = {loss: [], smooth: [], validation: [], saves: [], samples: [], scores: {}, messages: [], problems: [], steps: 0, step: 0, state: 'queued',
      attempt: 0, asked: null, pace: null, last: null, memory: null, peak: null, caching: null, ahead: 0, file: '', started: false}
    this.#chosen = null
    if (redraw) this.#soon()
  }

  passedOn(command) {
    if (this.#figures.asked?.command !== command) return  // done already
    this.#figures.asked.heard = true
    this.#soon()
  }

  take(events) {
    for (const event of events) this.#one(event)
    if (events.length) this.#soon()
  }

  #one(event) {
    const f = this.#figures, step = event.step
    if (f.asked && [DONE[f.asked.command], 'finished', 'stopped', 'failed'].includes(event.event)) f.asked = null
    if ((event.attempt ?? 0) > f.attempt) { f.attempt = event.attempt; f.problems = []; f.last = null; f.pace = null; f.forgot = false }
    if (f.attempt > 1 && !f.forgot && (event.event === 'resumed' || event.event === 'step')) {
      f.forgot = true
      const from = event.event === 'resumed' ? step + 1 : step
      for (const list of ['loss', 'validation', 'saves']) f[list] = f[list].filter(([at]) => at < from)
      f.samples = f.samples.filter(one => one.step < from)
      f.smooth = []
    }
    switch (event.event) {
      case 'queued': f.state = 'queued'; f.ahead = event.ahead ?? 0; f.device = event.device; f.caching = null; break
      case 'ready': f.state = 'running'; f.started = true; f.ahead = 0; break
      case 'preflight': f.steps = event.steps ?? f.steps; f.state = 'running'; f.caching = null; f.checked = true
        for (const problem of event.problems ?? []) f.messages.push(problem.text); break
      case 'caching': f.state = 'running'; f.caching = event; break
      case 'step': {
        f.state = 'running'; f.caching = null; f.step = step; f.steps = event.steps ?? f.steps
        if (typeof event.loss === 'number') f.loss.push([step, event.loss])
        if (f.last && step > f.last[0]) { const pace = (event.time - f.last[1]) / (step - f.last[0]); f.pace = f.pace === null ? pace : 0.9 * f.pace + 0.1 * pace }
        f.last = [step, event.time]; f.memory = event.memory_gb; f.peak = event.peak_memory_gb; break
      }
      case 'validation': if (typeof event.loss === 'number') f.validation.push([step, event.loss]); break
      case 'checkpoint': f.saves.push([step, event.file]); break
      case 'sample': f.samples.push(event); break
      case 'score': f.scores[event.name] = event.value; break
      case 'paused': f.state = 'paused'; f.lent = Boolean(event.by); f.step = step ?? f.step; f.last = null; break
      case 'resumed': f.state = 'running'; f.step = step ?? f.step; f.last = null; break
      case 'message': case 'warning': f.messages.push(event.text); break
      case 'finished': f.state = 'finished'; f.file = event.file; f.step = step ?? f.step; break
      case 'stopped': f.state = 'stopped'; f.step = step ?? f.step; break
      case 'failed': f.state = event.dead ? 'dead' : 'failed'; f.problems = (event.problems ?? []).map(one => one.text); break
    }
  }

  #say(key, fields = {}) { return (this.#texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => fields[name] ?? whole) }
  #number(value, digits) { return value.toLocaleString(document.documentElement.lang || undefined, {minimumFractionDigits: digits, maximumFractionDigits: digits}) }

  #soon() {
    if (this.isConnected) inTurn(this, () => { if (this.isConnected) this.#draw() })
  }

  #build() {
    const p = this.#parts = {
      root: make('section'), title: make('h2'), state: make('span', {className: 'chip state'}), chips: make('span', {className: 'row'}),
      buttons: make('span', {className: 'row push'}), fill: make('i'), figures: make('div', {className: 'row num soft figures'}), say: make('p', {className: 'say'}),
      lossTitle: make('h3', {textContent: this.#say('loss')}), chart: draw('svg', {role: 'img', tabindex: 0}), read: make('div', {className: 'read num soft'}),
      learned: make('div'), samples: make('div'), slider: make('input', {type: 'range', min: 0, ariaLabel: this.#say('shown_step')}), ends: make('div', {className: 'row num soft'}),
      log: make('ul'), details: make('details'), dialog: make('dialog'),
    }
    p.bar = make('div', {className: 'bar', role: 'progressbar', ariaValueMin: '0'}, p.fill)
    p.say.setAttribute('role', 'status'); p.say.setAttribute('aria-live', 'polite')
    p.details.append(make('summary', {textContent: this.#say('more')}), p.log)
    p.left = make('div', {}, p.lossTitle, p.chart, p.read, p.learned)
    p.right = make('div', {}, p.samples, p.slider, p.ends)
    p.root.append(make('div', {className: 'row'}, p.title, p.state, p.chips, p.buttons), p.bar, p.figures, p.say, make('div', {className: 'grid'}, p.left, p.right), p.details, p.dialog)
    p.slider.addEventListener('input', () => { const steps = this.#steps(); this.#chosen = steps[Number(p.slider.value)] ?? null; this.#soon() })
    p.chart.addEventListener('pointermove', event => this.#point(event.offsetX))
    p.chart.addEventListener('pointerleave', () => { this.#at = null; this.#soon() })
    p.chart.addEventListener('keydown', event => this.#key(event))
    p.dialog.addEventListener('click', () => p.dialog.close())
    this.shadowRoot.replaceChildren(make('style', {textContent: STYLE}), p.root)
    this.#shown = {}
  }

  /** Do something only when what it depends on has changed. */
  #when(part, key, work) { const text = JSON.stringify(key); if (this.#shown[part] !== text) { this.#shown[part] = text; work() } }

  #draw() {
    if (!this.#parts) this.#build()
    const p = this.#parts, f = this.#figures, state = this.state
    this.toggleAttribute('dark', isDark(this))
    p.root.className = state
    p.title.textContent = this.#name
    p.state.textContent = this.#say(state)
    this.#when('chips', [this.#job], () => p.chips.replaceChildren(...this.#chips().map(text => make('span', {className: 'chip', textContent: text}))))
    this.#when('buttons', [state, this.#commands], () => p.buttons.replaceChildren(...this.#words(state)))
    const share = state === 'finished' ? 1 : f.steps ? f.step / f.steps : f.caching?.total ? f.caching.done / f.caching.total : 0
    p.fill.style.width = `${(100 * share).toFixed(2)}%`
    p.bar.ariaValueNow = String(Math.round(100 * share)); p.bar.ariaValueMax = '100'; p.bar.ariaLabel = this.#say('step', {step: f.step, steps: f.steps})
    p.figures.textContent = this.#line(state)
    const sentence = this.#sentence(state)
    if (p.say.textContent !== sentence) p.say.textContent = sentence
    p.left.hidden = !f.loss.length && !Object.keys(f.scores).length
    if (f.loss.length) this.#chart()
    this.#when('scores', [f.scores], () => this.#scores())
    this.#pictures()
    p.details.hidden = !f.messages.length
    this.#when('log', [f.messages.length], () => p.log.replaceChildren(...f.messages.slice(-200).map(text => make('li', {textContent: text}))))
  }

  #chips() {
    const job = this.#job
    if (!job) return []
    const method = job.method ?? {}, base = String(job.base?.path ?? '').split(/[\\/]/).pop()
    return [[method.name, method.rank && `rank ${method.rank}`].filter(Boolean).join(' · '), base].filter(Boolean)
  }

  #words(state) {
    const served = command => (this.#commands ? this.#commands.includes(command) : !AFTER.includes(command))
    return [...(BUTTONS[state] ?? []), ...AFTER].filter(served).map(command => {
      const button = make('button', {type: 'button', textContent: this.#say(command), title: command === 'stop' ? this.#say('stop_hint') : ''})
      button.dataset.command = command
      button.addEventListener('click', () => {
        if (command in DONE) this.#figures.asked = {command, heard: false}
        this.dispatchEvent(new CustomEvent('tell', {detail: {command}, bubbles: true, composed: true}))
      })
      return button
    })
  }

  #line(state) {
    const f = this.#figures, parts = []
    if (f.step && f.steps) parts.push(this.#say('step', {step: f.step, steps: f.steps}))
    if (state === 'running' && f.pace) {
      parts.push(this.#say('speed', {speed: this.#number(1 / f.pace, f.pace > 1 ? 2 : 1)}), this.#say('left', {time: clock(f.pace * (f.steps - f.step))}))
    }
    if (f.memory != null) parts.push(this.#say('memory', {memory: this.#number(f.memory, 1), peak: this.#number(f.peak ?? f.memory, 1)}))
    return parts.join(' · ')
  }

  /** What the figures mean and what one could do now; nothing that was not measured. */
  #sentence(state) {
    const f = this.#figures
    if (f.asked?.heard && !ENDED.includes(state)) return this.#say('say_told')
    if (state === 'failed' || state === 'dead') return f.problems.join('\n') || this.#say('say_dead')
    if (state === 'stopped') return this.#say(f.step ? 'say_stopped' : 'say_unbegun', {step: f.step})
    if (state === 'paused') return this.#say(f.lent ? 'say_lent' : 'say_paused', {step: f.step})
    if (state === 'finished') return this.#say('say_finished', {step: f.step, file: f.file})
    if (state === 'queued') return f.ahead ? this.#say('say_queued', {ahead: f.ahead}) : this.#say('say_starting')
    if (f.caching) return this.#say({pictures: 'say_pictures', captions: 'say_captions', speed: 'say_speed', 'condition pictures': 'say_conditions'}[f.caching.what] ?? 'say_prior', {done: f.caching.done, total: f.caching.total})
    if (!f.loss.length) return this.#say(f.checked ? 'say_first' : f.started ? 'say_checking' : 'say_starting')
    if (f.validation.length > 1) {
      const best = f.validation.reduce((a, b) => (b[1] < a[1] ? b : a)), later = f.validation.filter(([step]) => step > best[0]).length
      return this.#say(later > 1 ? 'say_worse' : 'say_validation', {step: best[0], loss: this.#number(best[1], 4)})
    }
    const size = Math.max(10, Math.floor(f.loss.length / 5)), mean = list => list.reduce((sum, [, loss]) => sum + loss, 0) / list.length
    if (f.loss.length < 2 * size) return this.#say('say_early')
    const before = mean(f.loss.slice(-2 * size, -size)), after = mean(f.loss.slice(-size))
    return after < 0.97 * before ? this.#say('say_falling', {before: this.#number(before, 3), after: this.#number(after, 3)}) : this.#say('say_flat')
  }

  #smoothed() {
    const f = this.#figures
    if (f.smooth.length > f.loss.length) f.smooth = []
    let value = f.smooth.length ? f.smooth[f.smooth.length - 1][1] : null
    for (let i = f.smooth.length; i < f.loss.length; i++) {
      value = value === null ? f.loss[i][1] : SMOOTH * value + (1 - SMOOTH) * f.loss[i][1]
      f.smooth.push([f.loss[i][0], value])
    }
    return f.smooth
  }

  /** The curve at its real size in pixels: raw values faint, smoothed strong, validation as points, saves as diamonds. */
  #chart() {
    const f = this.#figures, p = this.#parts, width = Math.max(160, p.chart.clientWidth || this.clientWidth - 32)
    this.#when('chart', [width, f.loss.length, f.validation.length, f.saves.length, f.steps, this.#at, f.attempt], () => {
      const last = Math.max(f.steps, f.step, 1), strong = this.#smoothed(), inner = width - PAD.left - PAD.right
      let top = 1e-9
      for (const [, loss] of f.loss) if (loss > top) top = loss
      for (const [, loss] of f.validation) if (loss > top) top = loss
      const tick = nice(top / 3), high = Math.ceil(top / tick) * tick
      const x = step => PAD.left + inner * step / last, y = loss => PAD.top + (HEIGHT - PAD.top - PAD.bottom) * (1 - loss / high)
      const path = points => thin(points, 0, last, inner).map(([step, loss], i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`).join('')
      const drawn = []
      for (let loss = 0; loss <= high + tick / 2; loss += tick) {
        drawn.push(draw('line', {x1: PAD.left, x2: width - PAD.right, y1: y(loss), y2: y(loss), stroke: 'var(--line)'}),
          draw('text', {x: PAD.left - 6, y: y(loss) + 4, 'text-anchor': 'end'}, String(Number(loss.toPrecision(3)))))
      }
      drawn.push(draw('path', {d: path(f.loss), fill: 'none', stroke: 'var(--accent)', opacity: .28}), draw('path', {d: path(strong), fill: 'none', stroke: 'var(--accent)', 'stroke-width': 2}))
      const best = this.#best()
      for (const [step, loss] of f.validation) drawn.push(draw('circle', {cx: x(step), cy: y(loss), r: 3.5, fill: 'var(--bg)', stroke: 'var(--ink)', 'stroke-width': 1.5}))
      for (const [step] of f.saves) drawn.push(draw('path', {d: `M${x(step)} ${HEIGHT - PAD.bottom - 5}l4 5-4 5-4-5z`, fill: step === best ? 'var(--good)' : 'var(--soft)'}))
      for (const share of [0, 1 / 3, 2 / 3, 1]) drawn.push(draw('text', {x: x(last * share), y: HEIGHT - 6, 'text-anchor': share === 1 ? 'end' : share ? 'middle' : 'start'}, String(Math.round(last * share))))
      if (this.#at !== null) drawn.push(draw('line', {x1: x(this.#at), x2: x(this.#at), y1: PAD.top, y2: HEIGHT - PAD.bottom, stroke: 'var(--soft)', 'stroke-dasharray': '3 3'}))
      p.chart.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`)
      p.chart.replaceChildren(...drawn)
      p.chart.setAttribute('aria-label', this.#say('chart', {first: this.#number(f.loss[0][1], 3), last: this.#number(strong[strong.length - 1][1], 3), step: f.step}))
      p.read.textContent = this.#reading()
    })
  }

  #best() { const v = this.#figures.validation; return v.length ? v.reduce((a, b) => (b[1] < a[1] ? b : a))[0] : null }

  #reading() {
    const f = this.#figures
    if (this.#at === null) return f.validation.length ? this.#say('validation', {loss: this.#number(f.validation[f.validation.length - 1][1], 4)}) : ''
    const index = nearest(f.loss, this.#at)
    return `${this.#say('at_step', {step: f.loss[index][0]})} · ${this.#number(f.loss[index][1], 4)} (${this.#number(this.#smoothed()[index][1], 4)})`
  }

  #point(offset) {
    const f = this.#figures, width = this.#parts.chart.clientWidth, last = Math.max(f.steps, f.step, 1)
    const step = (offset - PAD.left) / Math.max(1, width - PAD.left - PAD.right) * last
    this.#at = f.loss[nearest(f.loss, step)][0]
    this.#soon()
  }

  #key(event) {
    const f = this.#figures, way = {ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10}[event.key]
    if (!way || !f.loss.length) return
    event.preventDefault()
    const index = this.#at === null ? f.loss.length - 1 : nearest(f.loss, this.#at)
    this.#at = f.loss[Math.min(f.loss.length - 1, Math.max(0, index + way))][0]
    this.#soon()
  }

  #scores() {
    const p = this.#parts, found = this.#figures.scores, rows = []
    for (const [key, after, before] of SCORES) {
      const value = found[after]
      if (typeof value !== 'number') continue
      const meter = make('span', {className: 'meter'}, make('i', {style: `width:${100 * value}%`}))
      if (typeof found[before] === 'number') meter.append(make('u', {style: `left:${100 * found[before]}%`}))
      const words = make('span', {className: 'num', textContent: `${Math.round(100 * value)}% `})
      if (typeof found[before] === 'number') words.append(make('span', {className: 'soft', textContent: this.#say('was', {value: `${Math.round(100 * found[before])}%`})}))
      rows.push(make('div', {className: 'score'}, make('b', {textContent: this.#say(key)}), meter, words))
    }
    p.learned.replaceChildren(...(rows.length ? [make('h3', {textContent: this.#say('learned'), title: this.#say('mark')}), ...rows] : []))
  }

  #steps() { return [...new Set(this.#figures.samples.map(one => one.step))].sort((a, b) => a - b) }

  /** Before and after, same prompt and seed; one slider moves all. */
  #pictures() {
    const f = this.#figures, p = this.#parts, steps = this.#steps()
    p.right.hidden = !steps.length
    if (!steps.length) return
    const shown = this.#chosen !== null && steps.includes(this.#chosen) ? this.#chosen : steps[steps.length - 1]
    p.slider.max = String(steps.length - 1)
    p.slider.value = String(steps.indexOf(shown))
    p.slider.setAttribute('aria-valuetext', this.#say('at_step', {step: shown}))
    p.slider.hidden = p.ends.hidden = steps.length < 2
    p.ends.replaceChildren(make('span', {textContent: this.#say('at_step', {step: steps[0]})}), make('span', {className: 'push', textContent: String(steps[steps.length - 1])}))
    this.#when('pictures', [shown, f.samples.length, f.attempt, this.#best()], () => {
      const prompts = new Map()
      for (const one of f.samples) { const rows = prompts.get(one.index) ?? {}; rows[one.step] = one; prompts.set(one.index, rows) }
      p.samples.replaceChildren(...[...prompts.entries()].sort((a, b) => a[0] - b[0]).flatMap(([, rows]) => {
        const pair = shown === 0 ? [rows[0]] : [rows[0], rows[shown]], first = pair.find(Boolean)
        if (!first) return []
        return [make('h3', {textContent: `“${first.prompt}”`}), make('div', {className: 'pics'}, ...pair.filter(Boolean).map(one => this.#picture(one)))]
      }))
    })
  }

  #picture(one) {
    const words = one.step === 0 ? this.#say('before') : this.#say('at_step', {step: one.step}) + (one.step === this.#best() ? ` · ${this.#say('best')}` : '')
    const image = make('img', {src: this.#fileUrl(one.file), alt: `${one.prompt}, ${words}`, tabIndex: 0, decoding: 'async'})
    const open = () => {
      this.#parts.dialog.replaceChildren(make('img', {src: image.src, alt: image.alt}), make('p', {textContent: `${one.prompt} · ${words} · seed ${one.seed}`}))
      this.#parts.dialog.showModal()
    }
    image.addEventListener('click', open)
    image.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); open() } })
    return make('figure', {}, image, make('figcaption', {textContent: words}))
  }
}

/** A round number near to this one: 1, 2 or 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)))
  return power * [1, 2, 5, 10].find(step => step * power >= value)
}

/** Index of the point whose step is nearest. */
function nearest(points, step) {
  let low = 0, high = points.length - 1
  while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] < step) low = middle; else high = middle }
  return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? low : high
}

/** Whether the host's theme is dark, by the ink that it gives us. */
function isDark(element) {
  const [r, g, b] = (getComputedStyle(element).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 140
}

if (!customElements.get('aprendiz-run')) customElements.define('aprendiz-run', Run)
