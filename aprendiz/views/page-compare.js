// Several runs side by side: their losses over each other, and their samples in columns, one slider over the steps for all.

import {ask, at, fill, filePath, make, say} from './page-parts.js'

const ROWS = 6  // prompts that are shown
const COLOURS = ['#c2570c', '#2563b0', '#1f8a4c', '#8a3ab9', '#a08000', '#b02a5b']

export const comparison = make('div', {class: 'ap-comparison'})
export const compared = new Set()
const found = new Map()  // by name: {losses: step -> loss, samples: 'step index' -> event, offset, busy}
let until = null         // the step of the slider; null: the last there is

/** Take a run into the comparison, or out of it. */
export async function compareRun(name, on) {
  if (!on) {
    compared.delete(name)
    found.delete(name)
  } else {
    compared.add(name)
    await read(name)
  }
  draw()
}

/** Read on in the runs that are going on, and let those go that are there no more. */
export async function refreshComparison(runs) {
  for (const name of compared) if (!runs.some(run => run.name === name)) compareRun(name, false)
  for (const run of runs) {
    const known = found.get(run.name)
    if (known && (run.busy || known.busy || known.lost) && await read(run.name)) draw()
    if (known) known.busy = run.busy
  }
}

/** Read what is new of a run; whether there was anything. */
async function read(name) {
  const known = found.get(name) || {losses: new Map(), validation: new Map(), samples: new Map(), offset: 0, busy: false}
  found.set(name, known)
  let more = true, some = false
  while (more && compared.has(name)) {
    const answer = await ask(`runs/${encodeURIComponent(name)}/events?from=${known.offset}`).catch(() => null)
    known.lost = answer === null
    if (known.lost) break
    for (const event of answer.events) {  // a resumed run does some steps again, and the later ones count
      if (event.event === 'step' && event.loss !== null) known.losses.set(event.step, event.loss)
      if (event.event === 'validation' && event.loss !== null) known.validation.set(event.step, event.loss)
      if (event.event === 'sample') known.samples.set(`${event.step} ${event.index}`, event)
    }
    more = answer.next > known.offset
    some ||= more
    known.offset = answer.next
  }
  return some
}

const svg = (tag, attributes, text) => {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  if (text !== undefined) node.textContent = text
  return node
}

const shown = () => [...compared].filter(name => found.has(name))
const colour = index => `color-mix(in srgb, ${COLOURS[index % COLOURS.length]} 72%, var(--ap-ink))`  // seen on light and on dark

function draw() {
  const names = shown()
  if (!names.length) return comparison.replaceChildren()
  const steps = [...new Set(names.flatMap(name => [...found.get(name).samples.values()].map(event => event.step)))].sort((a, b) => a - b)
  const columns = make('div', {class: 'ap-columns', tabindex: 0, role: 'group', 'aria-label': say('compared')})
  const focused = comparison.contains(document.activeElement) && document.activeElement.type === 'range'
  const marker = svg('line', {class: 'ap-at', y1: 8, y2: 158, x1: -9, x2: -9})
  fill(comparison, make('h3', {}, say('loss')), chart(names, marker), steps.length > 1 && slider(steps, names, columns, marker), columns)
  drawColumns(names, columns, until ?? steps.at(-1))
  if (focused) comparison.querySelector('input[type=range]')?.focus({preventScroll: true})
}

/** The losses of all, smoothed, and those on the pictures kept apart as points. */
function chart(names, marker) {
  const lines = names.map(name => smooth([...found.get(name).losses].sort((a, b) => a[0] - b[0])))
  const points = names.map(name => [...found.get(name).validation])
  const all = [...lines, ...points].flat()
  const width = Math.max(280, comparison.clientWidth || 560), height = 180
  const last = Math.max(1, ...all.map(([step]) => step)), top = Math.max(1e-6, ...all.map(([, loss]) => loss)) * 1.05
  const x = step => 40 + (width - 48) * step / last, y = loss => 8 + (height - 30) * (1 - loss / top)
  const whole = svg('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${say('loss')}: ${names.join(', ')}`})
  whole.append(marker)
  marker.place = step => { for (const end of ['x1', 'x2']) marker.setAttribute(end, x(Math.min(step, last)).toFixed(1)) }
  lines.forEach((line, index) => whole.append(svg('polyline', {points: line.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(' '),
    fill: 'none', stroke: colour(index), 'stroke-width': 2, ...(index % 2 ? {'stroke-dasharray': '6 3'} : {})})))
  points.forEach((some, index) => some.forEach(([step, loss]) => whole.append(svg('circle', {cx: x(step).toFixed(1), cy: y(loss).toFixed(1), r: 3,
    fill: 'none', stroke: colour(index), 'stroke-width': 1.5}))))
  for (const [text, left, low] of [[top.toPrecision(2), 2, 16], ['0', 2, height - 22], [String(last), width - 40, height - 6]]) whole.append(svg('text', {x: left, y: low}, text))
  return whole
}

/** One slider over the steps at which any of the runs drew samples. */
function slider(steps, names, columns, marker) {
  const wanted = until === null ? steps.length - 1 : Math.max(0, steps.findLastIndex(step => step <= until))
  const words = make('span', {class: 'ap-num'}, String(steps[wanted]))
  const input = make('input', {type: 'range', min: 0, max: steps.length - 1, step: 1, 'aria-valuetext': String(steps[wanted]), oninput: event => {
    const place = Number(event.target.value)
    until = place === steps.length - 1 ? null : steps[place]  // whoever looks at the last goes on doing so
    words.textContent = String(steps[place])
    event.target.setAttribute('aria-valuetext', String(steps[place]))
    marker.place(steps[place])
    drawColumns(names, columns, steps[place])
  }})
  input.value = String(wanted)
  marker.place(steps[wanted])
  return make('label', {class: 'ap-field'}, make('span', {}, say('until_step'), ' ', words), input)
}

/** Of each run a column: its newest samples up to a step, a row each prompt. */
function drawColumns(names, columns, step) {
  const prompts = Math.min(ROWS, Math.max(0, ...names.map(name => 1 + Math.max(-1, ...[...found.get(name).samples.values()].map(event => event.index ?? 0)))))
  columns.style.gridTemplateColumns = `repeat(${names.length}, minmax(112px, 1fr))`
  const head = (name, index) => {
    const mine = [...found.get(name).samples.values()].map(event => event.step).filter(one => one <= step)
    return make('p', {class: 'ap-head'}, make('b', {style: `--ap-line-colour:${colour(index)}`, title: name}, name), ' ',
      make('span', {class: 'ap-soft ap-num'}, mine.length ? say('at_step', {step: Math.max(...mine)}) : say('no_samples')))
  }
  const cell = (name, row) => {
    const sample = [...found.get(name).samples.values()].filter(event => (event.index ?? 0) === row && event.step <= step)
      .reduce((best, event) => (best && best.step > event.step ? best : event), null)
    if (!sample) return make('span', {class: 'ap-blank'})
    const href = at(filePath(name, sample.file)), words = `${name}, ${say('at_step', {step: sample.step})}: ${sample.prompt || ''}`
    return make('a', {href, target: '_blank', rel: 'noopener', title: sample.prompt || ''}, make('img', {src: href, alt: words, width: 128, height: 128}))
  }
  fill(columns, ...names.map(head), ...Array.from({length: prompts}, (_, row) => names.map(name => cell(name, row))).flat())
}

/** A running mean, at most 300 points. */
function smooth(points) {
  let mean = null
  const soft = points.map(([step, loss]) => [step, mean = mean === null ? loss : 0.93 * mean + 0.07 * loss])
  const every = Math.max(1, Math.floor(soft.length / 300))
  return soft.filter((_, index) => index % every === 0 || index === soft.length - 1)
}
