// The living half of the page: the run panel, trying out, runs and pictures, and messages beside the settings they concern.
//
// The settings themselves are Gradio's; this script draws what is in #aprendiz-live and #aprendiz-summary, from the routes beside it
// (docs/webui.md). It begins, listens and keeps the clock; the parts stand in page-*.js. No dependencies but panel.js.

import './panel.js'
import {answered, askAgain, listenToButtons, lose} from './page-asked.js'
import {send} from './page-captions.js'
import {ask, at, fill, find, insist, make, note, press, problemsOf, remembered, say, silence, state, told, wait, wake, write} from './page-parts.js'
import {check, drawPictures, lookAgain, pictures} from './page-pictures.js'
import {choose, follow, listRuns, places, runs, shelf} from './page-runs.js'
import {clearProblems, estimateWaits, markSettings, showEstimate, showProblems} from './page-settings.js'
import {listResults, tryRun, trying} from './page-try.js'

const LIST_EVERY = 3000, EVENTS_EVERY = 1000, IDLE_EVERY = 10000  // milliseconds

let styled = null
const opened = new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) tick() })

/** Put what we draw into the page once it can be seen, again where a host has drawn its part anew. Whether it can be seen. */
async function attach() {
  const live = find('aprendiz-live')
  if (live) opened.observe(live)
  if (!live?.offsetParent) return false
  await (styled ||= style())
  if (places.panel.parentNode !== live) live.replaceChildren(silence, state, places.panel, trying(), runs(), pictures())
  return true
}

// What Gradio's side answers

window.aprendizPage = {
  answer(text) {
    let answer
    try { answer = JSON.parse(text) } catch { return }
    answered(answer)
    if (answer.problems || answer.check) note('')
    if (answer.problems) showProblems(answer.problems)
    else if (answer.started) {
      clearProblems()
      note('')
      choose(answer.started)
      listRuns().catch(() => {})
      const {top} = places.panel.getBoundingClientRect()  // on a narrow window below all settings
      if (top < 0 || top > window.innerHeight / 2) places.panel.scrollIntoView({block: 'start'})
    } else if (answer.check) check(answer.check)
    else if (answer.look) lookAgain(answer.look).then(() => estimate(answer.look))
    else if (answer.filled) { clearProblems(); note(say('filled', {name: answer.filled})); setTimeout(() => { markSettings(); press('aprendiz-look') }, 300) }
  },
}

/** Time and memory of what is asked for, beside Start; the newest question counts. */
let estimating = 0
async function estimate(values) {
  const mine = ++estimating
  if (!values.data?.path) return showEstimate([])
  estimateWaits()
  try {
    const wanted = () => mine === estimating
    let answer = await insist('estimate', {values}, {wanted})
    while (answer && !answer.done) {
      await wait(700)
      answer = await insist('estimate', {values}, {wanted})
    }
    if (answer) showEstimate(answer.lines || [])
  } catch { if (mine === estimating) showEstimate([]) }  // what is wrong is told by Check and Start
}

// The clock

let waitingLook = null
/** How the host draws pictures, as settings of the samples. */
function readHost() {
  const {samplers, values} = window.aprendizHost.read()
  const sampler = samplers.find(name => told.samplers.includes(name))
  write('aprendiz-wanted', JSON.stringify(sampler ? {...values, 'samples.sampler': sampler} : values))
  setTimeout(() => press('aprendiz-fill'), 50)
}

function listen() {
  const page = find('aprendiz')
  if (!page || page.dataset.heard) return
  page.dataset.heard = 'yes'
  if (window.aprendizHost) find('aprendiz-samples-sample-prompts')?.append(make('button', {class: 'ap-read', onclick: readHost}, say('read')))
  find('aprendiz-settings')?.prepend(make('button', {class: 'ap-skip', type: 'button', onclick: () => {
    const start = find('aprendiz-start')
    ;(start?.tagName === 'BUTTON' ? start : start?.querySelector('button'))?.focus()
  }}, say('to_start')))
  listenToButtons()
  find('aprendiz-start')?.addEventListener('click', () => { clearProblems(); note(say('starting')) })
  const look = after => { clearTimeout(waitingLook); waitingLook = setTimeout(() => press('aprendiz-look'), after) }
  for (const kind of ['input', 'change', 'focusout', 'click']) {
    page.addEventListener(kind, event => {
      setTimeout(markSettings, 50)
      if (!event.target.closest?.('#aprendiz-settings')) return
      if (kind === 'input' && event.target.closest('#aprendiz-data-path, #aprendiz-data-trigger, #aprendiz-data-caption')) look(600)
      else if (kind === 'input' || kind === 'change') look(1500)
    })
  }
  if (find('aprendiz-data-path')?.querySelector('textarea, input')?.value) look(600)
}

let clock = null, ticking = false
async function tick() {
  if (ticking) return
  ticking = true
  clearTimeout(clock)
  try {
    if (!document.hidden && await attach()) {
      listen()
      markSettings()  // Gradio tells nobody when it fills a setting in
      if (!shelf.listed) {
        const before = remembered('run')
        await listRuns()
        if (!shelf.chosen && shelf.runs.some(run => run.name === before)) choose(before)
        drawPictures()
      } else if (Date.now() - shelf.listed > (shelf.runs.some(run => run.busy) ? LIST_EVERY : IDLE_EVERY)) await listRuns()
      if (shelf.chosen && Date.now() - shelf.fresh > (shelf.busy ? EVENTS_EVERY - 50 : LIST_EVERY)) await follow()
      heard()
      askAgain()
    }
  } catch (error) { unheard(error) }
  ticking = false
  clock = setTimeout(tick, EVENTS_EVERY)
}

/** Nobody answers, or not as it should: said for as long as it lasts. */
function unheard(error) {
  fill(silence, error.problems ? problemsOf(error)[0].text : say('lost'))
  silence.hidden = false
  lose()
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
  try { return await insist('words') } catch { await wait(LIST_EVERY) }
  return words()
}

async function begin() {
  Object.assign(told, await words())
  shelf.changed = listResults
  shelf.tried = tryRun
  tick()
  send()
  const {placed} = await ask('missed', {}).catch(() => ({placed: []}))
  if (placed.length) {
    note(say('placed', {names: placed.join(', ')}))
    window.aprendizHost?.ended()
  }
}

begin()
