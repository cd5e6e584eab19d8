// The page: settings, the run panel, trying out, runs and pictures, and messages beside the settings they concern.
//
// A host gives one element, #aprendiz, in which this script draws everything, from the routes beside it (docs/webui.md). It begins,
// listens and keeps the clock; the parts stand in page-*.js. No dependencies but panel.js.

import './panel.js'
import {send} from './page-captions.js'
import {fillIn, folderOf, form, restore, settings} from './page-form.js'
import {ask, at, fill, find, insist, make, note, noteError, problemsOf, remembered, say, silence, state, told, wait, wake} from './page-parts.js'
import {check, drawPictures, leaveCheck, lookAgain, pictures, placeProblems} from './page-pictures.js'
import {clearChanged, clearProblems, estimate, estimateWaits, showEstimate, showProblems, summary} from './page-problems.js'
import {choose, follow, listRuns, places, runs, shelf} from './page-runs.js'
import {listResults, tryRun, trying} from './page-try.js'

const LIST_EVERY = 3000, EVENTS_EVERY = 1000, IDLE_EVERY = 10000  // milliseconds
const TYPING = 1500, DONE = 600  // until what was changed is looked at, while somebody types, and where a folder is named or a field left

let styled = null, drawn = null
const opened = new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) tick() })

/** Put the page into the host's once it can be seen, again where a host has drawn its part anew. Whether it can be seen. */
async function attach() {
  const page = find('aprendiz')
  if (page) opened.observe(page)
  if (!page?.offsetParent) return false
  await (styled ||= style())
  const first = !drawn
  drawn ||= draw()
  if (drawn[0].parentNode !== page) {
    page.replaceChildren(...drawn)
    for (let one = page; one; one = one.parentElement) if (getComputedStyle(one).overflow === 'hidden') one.style.overflow = 'clip'  // or nothing stays in sight
  }
  if (first) restore()
  return true
}

function draw() {
  const look = make('button', {id: 'aprendiz-check', type: 'button', onclick: () => { note(''); check(form()) }}, say('check'))
  const start = make('button', {id: 'aprendiz-start', class: 'ap-main', type: 'button', onclick: begin}, say('start'))
  const left = settings()
  for (const kind of ['input', 'change']) left.addEventListener(kind, () => { clearChanged(); if (leaveCheck()) fill(summary) })
  left.addEventListener('input', event => lookSoon(event.target.closest('#aprendiz-data-path, #aprendiz-data-trigger, #aprendiz-data-caption') ? DONE : TYPING))
  left.addEventListener('change', () => lookSoon(DONE))
  if (window.aprendizHost) left.querySelector('#aprendiz-samples-sample-prompts').append(make('button', {class: 'ap-read', type: 'button', onclick: readHost}, say('read')))
  return [left, make('div', {class: 'ap-column'}, estimate, summary,
    make('div', {id: 'aprendiz-buttons'}, silence, state, make('div', {class: 'ap-both'}, look, start)),
    make('div', {id: 'aprendiz-live', role: 'region', 'aria-label': say('runs')}, places.panel, trying(), runs(), pictures()))]
}

let begun = null  // by this page, lately
/** Make the run of what is filled in. Not asked again by itself where nobody answers: it would be begun twice. */
async function begin() {
  leaveCheck()
  clearProblems()
  note(say('starting'))
  try {
    const asked = form(), {started} = await ask('start', {form: asked})
    begun = {name: started, form: asked}
    const wanted = asked.controls['aprendiz-output-name']?.trim()
    note(wanted && wanted !== started ? say('renamed', {wanted, name: started}) : '')
    choose(started)
    listRuns().catch(() => {})
    const {top} = places.panel.getBoundingClientRect()  // on a narrow window below all settings
    if (top < 0 || top > window.innerHeight / 2) places.panel.scrollIntoView({block: 'start'})
  } catch (error) {
    if (!error.problems) noteError(error)
    else { note(''); showProblems(error.problems) }
  }
}

let looking = 0, waitingLook = null
/** Show the pictures of what is filled in, and what it would come to, after so many milliseconds without another change. */
function lookSoon(after) {
  const mine = ++looking, wanted = () => mine === looking
  clearTimeout(waitingLook)
  waitingLook = setTimeout(async () => {
    try {
      const asked = form()
      await lookAgain(asked)
      await foresee(asked, wanted)
    } catch (error) { if (wanted()) { showEstimate([]); noteError(error) } }
  }, after)
}

/** Time and memory of what is asked for, beside Start; the newest question counts. */
async function foresee(form, wanted) {
  if (!folderOf(form)) return showEstimate([])
  estimateWaits()
  try {
    let answer = await insist('estimate', {form}, {wanted})
    while (answer && !answer.done) {
      await wait(700)
      answer = await insist('estimate', {form}, {wanted})
    }
    if (answer) showEstimate(answer.lines || [])
  } catch { if (wanted()) showEstimate([]) }  // what is wrong is told by Check and Start
}

/** How the host draws pictures, as settings of the samples. */
function readHost() {
  const {samplers, values} = window.aprendizHost.read()
  const sampler = samplers.find(name => told.samplers.includes(name))
  const known = sampler ? {...values, 'samples.sampler': sampler} : values
  fillIn({controls: Object.fromEntries(told.settings.filter(one => !one.method && one.where in known).map(one => [one.id, known[one.where]]))})
}

// The clock

let clock = null, ticking = false
async function tick() {
  if (ticking) return
  ticking = true
  clearTimeout(clock)
  try {
    if (!document.hidden && await attach()) {
      if (!shelf.listed) {
        const before = remembered('run')
        await listRuns()
        if (!shelf.chosen && shelf.runs.some(run => run.name === before)) choose(before)
        drawPictures()
      } else if (Date.now() - shelf.listed > (shelf.runs.some(run => run.busy) ? LIST_EVERY : IDLE_EVERY)) await listRuns()
      if (shelf.chosen && Date.now() - shelf.fresh > (shelf.busy ? EVENTS_EVERY - 50 : LIST_EVERY)) await follow()
      heard()
    }
  } catch (error) { unheard(error) }
  ticking = false
  clock = setTimeout(tick, EVENTS_EVERY)
}

/** Nobody answers, or not as it should: said for as long as it lasts. */
function unheard(error) {
  fill(silence, error.problems ? problemsOf(error)[0].text : say('lost'))
  silence.hidden = false
}

function heard() {
  if (silence.hidden) return
  silence.hidden = true
  wake()
}

/** How the page looks, asked for until it is there; done with the first answer. */
const style = () => new Promise(done => {
  const link = make('link', {rel: 'stylesheet', href: at('page.css'), onload: done, onerror: () => {
    link.remove()
    setTimeout(style, LIST_EVERY)
    done()
  }})
  document.head.append(link)
})

/** What the page is told once, whatever stands in its way. */
async function words() {
  const why = text => { const page = find('aprendiz'); if (page) fill(page, make('p', {role: 'status'}, text)) }
  try { return await insist('words', undefined, {silent: yes => yes && why(say('lost'))}) } catch (error) { why(problemsOf(error)[0].text) }
  await wait(LIST_EVERY)
  return words()
}

async function come() {
  Object.assign(told, await words())
  shelf.changed = listResults
  shelf.tried = tryRun
  shelf.failed = (name, problems) => {  // what reading the pictures found stands beside them too
    if (name !== begun?.name) return
    placeProblems(begun.form, problems)
    begun = null
  }
  tick()
  send()
  const {placed} = await ask('missed', {}).catch(() => ({placed: []}))
  if (placed.length) {
    note(say('placed', {names: placed.join(', ')}))
    window.aprendizHost?.ended()
  }
}

come()
