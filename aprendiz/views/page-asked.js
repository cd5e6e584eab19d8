// What Gradio's side is asked by its buttons: once more where no answer comes, and after Gradio has loaded the page anew.

import {find, note, press, say, wait, write} from './page-parts.js'
import {changedSettings} from './page-settings.js'

const UNANSWERED = 6000  // milliseconds until it is asked once more; twice as many until the next time
const TRIES = 4          // an answer that is an error of its own never comes
const KEPT = 'aprendiz-asked'
const START = 'aprendiz-start'
const ANSWERS = {check: 'aprendiz-check', look: 'aprendiz-look', filled: 'aprendiz-fill', put: 'aprendiz-fill', started: START, problems: START}
const open = new Map()   // by button: {since, tries, lost}, until it is answered
let kept = null          // what was filled in and pressed before the page was loaded anew, until it is so again

/** Note what is pressed from now on. */
export function listenToButtons() {
  for (const id of new Set(Object.values(ANSWERS))) {
    find(id)?.addEventListener('click', () => open.set(id, {since: Date.now(), tries: 1 + (open.get(id)?.tries ?? 0), lost: false}))
  }
  resume()
}

/** An answer has come. */
export function answered(answer) {
  for (const [kind, id] of Object.entries(ANSWERS)) if (kind in answer) open.delete(id)
  if (answer.problems) open.delete('aprendiz-fill')
  if (!answer.put || !kept) return
  const {pressed} = kept
  forget()
  for (const id of pressed) if (id !== START && id !== 'aprendiz-fill') press(id)
}

/** Nobody answers the page at the moment. */
export function lose() {
  for (const one of open.values()) Object.assign(one, {lost: true, tries: 1})
}

/** Press again what is not answered. Not so Start, which would begin a second run: that is left to the person. */
export function askAgain() {
  for (const [id, one] of open) {
    if (Date.now() - one.since < UNANSWERED * 2 ** (one.tries - 1)) continue
    if (id === START && one.lost) note(say('unheard'), true)
    if (id === START ? one.lost : one.tries === TRIES) {
      open.delete(id)
      if (id !== START) forget()
    } else if (id !== START) press(id)
  }
}

// Gradio 6 loads its page anew, without what was filled in, once a server answers that had not answered it.

window.addEventListener('pagehide', () => {
  if (open.size && !kept) try { sessionStorage.setItem(KEPT, JSON.stringify({values: changedSettings(), pressed: [...open.keys()]})) } catch { /* it keeps nothing */ }
})

function forget() {
  kept = null
  try { sessionStorage.removeItem(KEPT) } catch { /* it keeps nothing */ }
}

/** Fill in what was filled in; what was pressed is pressed once that is answered. */
async function resume() {
  try { kept = JSON.parse(sessionStorage.getItem(KEPT)) } catch { /* it keeps nothing */ }
  if (!kept) return
  if (kept.pressed.includes(START)) note(say('unheard'), true)
  write('aprendiz-wanted', JSON.stringify(kept.values))
  await wait(50)
  press('aprendiz-fill')
}
