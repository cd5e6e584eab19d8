// Trying results out: pictures with the base alone and with what was learned, on the same seeds, drawn by a process of their own.

import {ask, at, fill, make, problemsOf, say, section, sentence, told, wait} from './page-parts.js'
import {shelf} from './page-runs.js'

const ROWS = 8          // comparisons that are kept on the page
const LOOK_EVERY = 400  // milliseconds
const parts = {}        // the controls, by name
let part = null, shown = []
let picked = false      // by a person; until then the newest result is offered

/** The section itself, made when the texts are there. */
export function trying() {
  if (!part) {
    part = section('trying', say('try_it'), false)
    build()
  }
  return part.whole
}

/** Bring the pane up for a run. */
export function tryRun(name) {
  trying().open = true
  parts.run.value = name
  picked = true
  choose()
  part.whole.scrollIntoView({block: 'start'})
  parts.prompt.focus({preventScroll: true})
}

const labelled = (text, control, output = null) => make('label', {class: 'ap-field'}, make('span', {}, text, output && ' ', output), control)
const number = (id, attributes) => parts[id] = make('input', {type: 'number', ...attributes})

function build() {
  parts.run = make('select', {onchange: () => { picked = true; choose() }})
  parts.file = make('input', {type: 'text', placeholder: say('try_path'), 'aria-label': say('try_path')})
  parts.step = make('input', {type: 'range', min: 0, max: 0, step: 1, oninput: tellSliders})
  parts.weight = make('input', {type: 'range', min: 0, max: 2, step: 0.05, value: 1, oninput: tellSliders})
  parts.stepWords = make('span', {class: 'ap-num'})
  parts.weightWords = make('span', {class: 'ap-num'})
  parts.prompt = make('textarea', {rows: 2})
  parts.negative = make('input', {type: 'text'})
  parts.base = make('input', {type: 'text'})
  parts.control = make('input', {type: 'text', placeholder: say('try_control_path'), 'aria-label': say('try_control_path')})
  parts.picture = make('input', {type: 'file', accept: 'image/png,image/jpeg,image/webp,image/bmp', onchange: sendCondition})
  parts.condition = make('img', {class: 'ap-condition', alt: '', hidden: true, width: 64, height: 64})
  parts.conditionNote = make('div', {'aria-live': 'polite'})
  parts.sampler = make('select', {}, ...told.samplers.map(name => make('option', {value: name}, name)))
  parts.device = make('select', {}, ...['auto', 'cpu'].map(name => make('option', {value: name}, name)))
  parts.draw = make('button', {class: 'ap-main', onclick: () => drawOnce()}, say('draw'))
  parts.every = make('button', {onclick: drawEvery, title: say('draw_every_hint')}, say('draw_every'))
  parts.end = make('button', {hidden: true, onclick: () => ask('untry', {}).catch(() => {})}, say('draw_end'))
  parts.stepField = labelled(say('try_step'), parts.step, parts.stepWords)
  parts.weightField = labelled(say('try_weight'), parts.weight, parts.weightWords)
  parts.fileField = labelled(say('try_path'), parts.file)
  parts.controlField = make('div', {class: 'ap-field ap-control'}, labelled(say('try_control'), parts.picture), parts.condition,
    parts.conditionNote, parts.control)
  parts.rows = make('div', {class: 'ap-tries', 'aria-live': 'polite'})
  fill(part.body,
    make('div', {class: 'ap-fields'}, labelled(say('try_result'), parts.run), parts.fileField, parts.stepField, parts.weightField, parts.controlField),
    labelled(say('try_prompt'), parts.prompt),
    make('details', {class: 'ap-more'}, make('summary', {}, say('try_more')), make('div', {class: 'ap-fields'},
      labelled(say('try_base'), parts.base), labelled(say('try_negative'), parts.negative),
      labelled(say('try_seed'), number('seed', {min: 0, value: 1})), labelled(say('try_count'), number('count', {min: 1, max: 16, value: 2})),
      labelled(say('try_steps'), number('steps', {min: 1, max: 200, value: 20})),
      labelled(say('try_guidance'), number('guidance', {min: 1, max: 30, step: 0.5, value: 5})),
      labelled(say('try_sampler'), parts.sampler), labelled(say('try_device'), parts.device),
      labelled(say('try_width'), number('width', {min: 64, step: 8})), labelled(say('try_height'), number('height', {min: 64, step: 8})))),
    make('div', {class: 'ap-row'}, parts.draw, parts.every, parts.end), parts.rows)
  listResults()
}

/** Hand the chosen condition picture to the server, which keeps it under a key of its own. */
let kept = null
async function sendCondition() {
  const file = parts.picture.files[0]
  kept = null
  parts.condition.hidden = true
  fill(parts.conditionNote)
  if (!file) return
  if (file.size > told.largest_picture) return fill(parts.conditionNote, sentence({text: say('too_large', {size: told.largest_picture >> 20, side: 4096})}))
  fill(parts.conditionNote, make('p', {class: 'ap-soft'}, say('sending')))
  try {
    const answer = await ask('condition', file)
    if (parts.picture.files[0] !== file) return
    kept = answer.key
    Object.assign(parts.condition, {src: at(`condition?key=${kept}`), alt: file.name, hidden: false})
    fill(parts.conditionNote, make('p', {class: 'ap-soft ap-num'}, `${answer.width} × ${answer.height}`))
    parts.control.value = ''
  } catch (error) {
    if (parts.picture.files[0] === file) fill(parts.conditionNote, ...problemsOf(error).map(sentence))
  }
}

const chosenRun = () => shelf.runs.find(run => run.name === parts.run.value)

/** Keep the list of results as the runs are. */
export function listResults() {
  if (!part) return
  const names = shelf.runs.filter(run => run.files.length).map(run => run.name)
  const wanted = [...names, ' file', ' none'].join('\n')
  if (parts.run.dataset.listed !== wanted) {
    const before = parts.run.value
    fill(parts.run, ...names.map(name => make('option', {value: name}, name)), make('option', {value: ' file'}, say('try_file')),
      make('option', {value: ' none'}, say('try_none')))
    parts.run.dataset.listed = wanted
    parts.run.value = picked && [...parts.run.options].some(one => one.value === before) ? before : names[0] ?? ' none'
    if (parts.run.value !== before) choose()
  }
  const run = chosenRun(), last = Number(parts.step.max), files = (run?.files.length ?? 1) - 1
  if (files !== last) {  // a step was saved meanwhile; whoever looks at the newest goes on doing so
    const newest = Number(parts.step.value) === last
    parts.step.max = String(files)
    if (newest) parts.step.value = String(files)
    tellSliders()
  }
}

/** Another result was chosen. */
function choose() {
  const run = chosenRun()
  parts.step.max = String(Math.max(0, (run?.files.length ?? 1) - 1))
  parts.step.value = parts.step.max
  parts.base.placeholder = run ? run.base : 'micro'
  parts.prompt.placeholder = run?.trigger ? say('try_trigger', {trigger: run.trigger}) : ''
  const known = shelf.runs.some(other => other.prompts.includes(parts.prompt.value))
  if (run?.prompts.length && (!parts.prompt.value || known)) parts.prompt.value = run.prompts[0]
  tellSliders()
}

function tellSliders() {
  const run = chosenRun(), takes = run ? told.methods[run.method] : null, of = parts.run.value
  parts.fileField.hidden = of !== ' file'
  parts.stepField.hidden = parts.every.hidden = !run || run.files.length < 2
  parts.weightField.hidden = run ? !takes?.weight : of !== ' file'
  parts.controlField.hidden = run ? !takes?.control : of !== ' file'
  const step = run?.files[Number(parts.step.value)]?.step
  parts.stepWords.textContent = step ?? ''
  parts.step.setAttribute('aria-valuetext', String(step ?? ''))
  parts.weightWords.textContent = Number(parts.weight.value).toFixed(2)
}

const given = name => parts[name].value.trim()

function wanted(index = Number(parts.step.value)) {
  const run = chosenRun(), chosen = run?.files[index]
  const values = {run: run?.name ?? '', file: run ? chosen?.file : parts.run.value === ' file' ? given('file') : '', base: given('base'),
    weight: Number(parts.weight.value), prompt: parts.prompt.value,
    ...(parts.controlField.hidden ? {} : given('control') ? {control: given('control')} : {kept: kept ?? ''})}
  for (const name of ['seed', 'count', 'steps', 'guidance', 'sampler', 'negative', 'width', 'height', 'device']) values[name] = given(name)
  const weight = parts.weightField.hidden ? '' : say('at_weight', {weight: parts.weightWords.textContent})
  const what = run ? [run.name, chosen?.step && say('at_step', {step: chosen.step}), weight] : values.file ? [values.file.split(/[\\/]/).pop(), weight] : []
  return {values, title: what.filter(Boolean).join(' · ')}
}

async function drawEvery() {
  const all = (chosenRun()?.files ?? []).map((_, index) => wanted(index))  // another may be chosen meanwhile
  for (const one of all) {
    if (!await drawOnce(one)) break
  }
}

/** How far one side is; asked for again while nobody answers. */
async function look(key) {
  for (;;) {
    try { return await ask(`tried?key=${key}`) } catch (error) { if (error.problems) throw error }
    await wait(LOOK_EVERY)
  }
}

/** Draw one comparison into a new row; whether it could be done. */
async function drawOnce({values, title} = wanted()) {
  const row = make('div', {class: 'ap-try'})
  shown = [row, ...shown].slice(0, ROWS)
  fill(parts.rows, ...shown)
  const count = Math.min(16, Math.max(1, Number(values.count) || 1))
  parts.draw.disabled = parts.every.disabled = true
  parts.end.hidden = false
  let done = false
  try {
    const keys = await ask('try', values)
    for (;;) {
      const base = await look(keys.base), tuned = keys.tuned ? await look(keys.tuned) : null
      const failed = base.problems.length + (tuned?.problems.length ?? 0) > 0
      drawRow(row, values, title, count, base, tuned)
      done = base.ready && (!tuned || tuned.ready)
      if (done) return !failed
      await wait(LOOK_EVERY)
    }
  } catch (error) {
    fill(row, ...problemsOf(error).map(sentence))
    return false
  } finally {
    parts.draw.disabled = parts.every.disabled = false
    parts.end.hidden = true
  }
}

function drawRow(row, values, title, count, base, tuned) {
  const said = new Set(base.problems.map(problem => problem.text))
  if (tuned) tuned.problems = tuned.problems.filter(problem => !said.has(problem.text))
  const words = [values.prompt, say('at_seed', {seed: values.seed || 0})].filter(Boolean).join(' · ')
  const side = (name, told, first) => make('div', {class: 'ap-side'}, make('p', {class: 'ap-name'}, name),
    ...told.problems.map(sentence),
    !told.ready && !told.waits && make('p', {class: 'ap-soft ap-num'}, told.total ? say('drawing', told) : first ? say('draw_waits') : ''),
    make('div', {class: 'ap-drawn'}, ...Array.from({length: told.ready ? told.count : count}, (_, n) =>
      told.ready ? make('a', {href: at(`drawn?key=${told.key}&n=${n}`), target: '_blank', rel: 'noopener'},
        make('img', {src: at(`drawn?key=${told.key}&n=${n}`), alt: `${name}: ${values.prompt}`, width: 128, height: 128}))
        : make('span', {class: 'ap-blank'}))))
  const state = JSON.stringify([base, tuned])
  if (row.dataset.state === state) return
  row.dataset.state = state
  const waiting = [base, tuned].find(side => side?.waits && !side.ready)
  fill(row, make('p', {class: 'ap-soft ap-words'}, words), waiting && waits({device: waiting.waits, by: waiting.by}), make('div', {class: 'ap-sides'}, side(say('try_bare'), base, true), tuned && side(title, tuned, false)))
}

/** Why nothing is drawn yet, and what can be done about it. */
function waits({device, by} = {}) {
  const run = shelf.runs.find(one => one.name === by)
  return make('div', {class: 'ap-waits', role: 'status'}, make('p', {}, by ? say('waits', {device, by}) : say('waits_bare', {device})),
    make('div', {class: 'ap-row'},
      run && make('button', {onclick: () => ask(`runs/${encodeURIComponent(by)}/tell`, {command: 'pause'}).catch(() => {})}, say('pause_it', {name: by})),
      device !== 'cpu' && make('button', {onclick: onTheCpu}, say('draw_cpu'))))
}

/** Give up what waits, and draw the same on the processor. */
async function onTheCpu() {
  parts.device.value = 'cpu'
  await ask('untry', {}).catch(() => {})
  while (parts.draw.disabled) await wait(LOOK_EVERY)  // the row that waited has to take note
  drawOnce()
}
