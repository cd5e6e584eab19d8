// The runs of this output folder: the one that is shown in the run panel, and the list.

import {compared, compareRun, comparison, refreshComparison} from './page-compare.js'
import {fillIn} from './page-form.js'
import {ask, at, fill, filePath, make, note, noteError, remember, say, section, told} from './page-parts.js'
import {clearProblems} from './page-problems.js'

export const places = {panel: make('div', {class: 'ap-panel'})}
export const shelf = {runs: [], chosen: null, offset: 0, panel: null, listed: 0, fresh: 0, busy: false, dead: false,
  changed: () => {}, tried: () => {}, failed: () => {}}

let part = null
const list = make('div', {})
/** The section of the list, made when the texts are there. */
export function runs() {
  if (!part) {
    part = section('runs', say('runs'))
    part.body.append(list, comparison)  // the comparison stays as it is when the list is drawn anew: somebody may be at its slider
  }
  return part.whole
}

export async function listRuns() {
  const busy = new Set(shelf.runs.filter(run => run.busy).map(run => run.name))
  shelf.runs = (await ask('runs')).runs
  shelf.listed = Date.now()  // once answered: until then each tick asks, and tells that nobody answers
  for (const run of shelf.runs) {  // placed once; asked for, so that the host's lists are not shown too early
    if (window.aprendizHost && run.state === 'finished' && busy.has(run.name)) place(run.name).then(window.aprendizHost.ended).catch(() => {})
  }
  if (!shelf.chosen) {
    const going = shelf.runs.find(run => run.busy)
    if (going) choose(going.name)
  }
  drawRuns()
  shelf.changed()
  refreshComparison(shelf.runs).catch(() => {})
}

const key = (what, run) => ({'data-key': `${what} ${run.name}`})

const rows = new Map()  // by name: {row, drawn: what it shows}
const every = make('ul', {})

/** Draw what has changed, and nothing else: somebody may be scrolling, pressing a button or being asked. */
function drawRuns() {
  const focused = document.activeElement?.dataset?.key, names = new Set(shelf.runs.map(run => run.name))
  if (!names.size) fill(list, make('p', {class: 'ap-soft'}, say('no_runs')))
  else if (every.parentNode !== list) fill(list, every)
  for (const [name, {row}] of rows) if (!names.has(name)) { row.remove(); rows.delete(name) }
  let next = every.firstChild
  for (const run of shelf.runs) {
    const known = rows.get(run.name), drawn = JSON.stringify([run, run.name === shelf.chosen, compared.has(run.name)])
    const stays = known && (known.drawn === drawn || known.row.querySelector('.ap-confirm')), row = stays ? known.row : drawRun(run)
    if (!stays) {
      rows.set(run.name, {row, drawn})
      if (next === known?.row) next = row
      known?.row.replaceWith(row)
    }
    if (row === next) next = next.nextSibling
    else every.insertBefore(row, next)
  }
  if (focused && document.activeElement === document.body) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({preventScroll: true})
}


function drawRun(run) {
  const chosen = run.name === shelf.chosen
  const words = [say(run.state), run.steps ? say('steps_done', run) : '', told.methods[run.method]?.title || run.method, run.base]
  return make('li', {class: chosen ? 'ap-run ap-chosen' : 'ap-run', 'data-run': run.name},
    make('button', {class: 'ap-open', onclick: () => choose(run.name), 'aria-pressed': String(chosen), ...key('open', run)},
      run.picture ? make('img', {src: at(filePath(run.name, run.picture)), alt: '', width: 40, height: 40}) : make('span', {class: 'ap-blank'}),
      make('span', {class: 'ap-grow'}, make('b', {}, run.name), make('br'),
        make('span', {class: 'ap-soft ap-num'}, words.filter(Boolean).join(' · ')),
        chosen && make('span', {class: 'ap-soft ap-folder'}, run.folder))),
    make('span', {class: 'ap-does'},
      run.file && make('a', {href: at(filePath(run.name, run.file)), download: true, ...key('file', run)}, say('download')),
      run.step > 0 && make('a', {href: at(`runs/${encodeURIComponent(run.name)}/loss.csv`), download: true, ...key('csv', run)}, say('csv')),
      run.log && make('a', {href: at(filePath(run.name, run.log)), target: '_blank', rel: 'noopener', ...key('log', run)}, say('log')),
      run.file && window.aprendizHost && make('button', {onclick: () => send(run.name), ...key('send', run)}, say('send')),
      run.files.length > 0 && make('button', {onclick: () => shelf.tried(run.name), ...key('try', run)}, say('try_it')),
      !run.busy && run.state !== 'finished' && make('button', {onclick: () => act(run.name, 'resume'), ...key('resume', run)}, say('resume')),
      make('button', {onclick: () => useSettings(run.name), ...key('use', run)}, say('again')),
      make('label', {class: 'ap-compare'}, make('input', {type: 'checkbox', checked: compared.has(run.name), ...key('compare', run),
        onchange: event => compareRun(run.name, event.target.checked)}), say('compare')),
      !run.busy && make('button', {class: 'ap-danger', onclick: event => confirmDelete(run.name, event.target), ...key('delete', run)}, say('delete'))))
}

function confirmDelete(name, button) {
  const back = () => { box.replaceWith(button); button.focus({preventScroll: true}) }
  const no = make('button', {onclick: back}, say('delete_no')), question = say('really', {name})
  const box = make('span', {class: 'ap-confirm', role: 'alertdialog', 'aria-label': question, onkeydown: event => { if (event.key === 'Escape') back() }},
    question, ' ', make('button', {class: 'ap-danger', onclick: () => { back(); act(name, 'delete') }}, say('delete_yes')), ' ', no)
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
  } catch (error) { noteError(error) }
  await listRuns().catch(() => {})
}

/** Have a result put where the host looks. */
const place = name => ask(`runs/${encodeURIComponent(name)}/place`, {})

/** Have the host use a result: what calls it goes into the host's prompt. */
async function send(name) {
  try { window.aprendizHost.use((await place(name)).prompt) }
  catch (error) { noteError(error) }
}

async function useSettings(name) {
  try {
    const form = await ask(`runs/${encodeURIComponent(name)}/form`)
    clearProblems()
    fillIn(form, true)
    note(say('filled', {name}))
  } catch (error) { noteError(error) }
}

// The one run panel of all doors

/** Show a run in the panel and follow it. */
export function choose(name) {
  Object.assign(shelf, {chosen: name, offset: 0, panel: null, fresh: 0, busy: false, dead: false})
  places.panel.replaceChildren()
  remember('run', name)
  if (name) {
    shelf.panel = panelOf(name)
    places.panel.append(shelf.panel)
    follow().catch(() => {})
  }
  drawRuns()
}

let following = null  // the panel that is being fed
export async function follow() {
  const {chosen: name, panel} = shelf, shown = () => shelf.panel === panel  // a run that is chosen anew has another, which begins anew
  if (!name || following === panel) return
  following = panel
  try {
    for (;;) {
      const answer = await ask(`runs/${encodeURIComponent(name)}/events?from=${shelf.offset}`)
      if (!shown()) return
      if (answer.next < shelf.offset) panel.clear()
      const more = answer.events.length > 0 && answer.next > shelf.offset
      shelf.offset = answer.next
      shelf.busy = ['queued', 'running', 'paused'].includes(answer.state)
      feed(panel, answer)
      if (!more) break
    }
    shelf.fresh = Date.now()
  } catch (error) {
    if (!shown()) return
    if (!error.problems) throw error
    choose(null)
    noteError(error)
  } finally { if (following === panel) following = null }
}

function panelOf(name) {
  const panel = document.createElement('aprendiz-run')
  panel.texts = told.panel
  panel.name = name
  panel.fileUrl = file => at(filePath(name, file))
  panel.addEventListener('tell', event => {
    const command = event.detail.command
    ask(`runs/${encodeURIComponent(name)}/${command === 'start' ? 'resume' : 'tell'}`, command === 'start' ? {} : {command})
      .then(() => { note(''); panel.passedOn(command); shelf.dead = false; return Promise.all([follow(), listRuns()]).catch(() => {}) }, noteError)
  })
  ask(`runs/${encodeURIComponent(name)}/job`).then(job => { panel.job = job }).catch(() => {})
  return panel
}

function feed(panel, answer) {
  panel.take(answer.events)
  for (const event of answer.events) if (event.event === 'failed') shelf.failed(panel.name, event.problems ?? [])
  if (answer.state === 'dead' && !shelf.dead) panel.take([{event: 'failed', dead: true, problems: answer.problems}])
  shelf.dead = answer.state === 'dead'
  if (panel.state !== answer.state) panel.commands = answer.state === 'queued' ? ['stop'] : null  // its worker waits: nothing to go on with
  panel.state = answer.state
}
