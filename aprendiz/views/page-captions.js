// Captions on their way into their files. What is typed is kept, in this browser too, until the server has taken it.
//
// One is sent at a time, always its newest text, and with it every text that its file may hold by now as far as this page knows. Where
// it holds another one, somebody else has written it meanwhile, and it is left so (`captions` in routes.py): a text that is late, or
// comes from a page that was left open, is never written over a newer one.

import {ask, at, problemsOf, remember, remembered, rest, say, wake} from './page-parts.js'

const TYPING = 800                          // milliseconds without a key until a text is sent
const SHORTEST = 1000, LONGEST = 15000      // between two attempts, while nobody answers
const ANSWER = 20000                        // until an answer is no longer waited for
const MOST = 200                            // that are kept in the browser

const keyOf = (folder, name) => JSON.stringify([folder, name])
const kept = () => { try { return JSON.parse(remembered('captions', '[]')) } catch { return [] } }

/** By folder and name: {folder, name, text, known: what its file may hold; where it was refused: problems, now: what it does hold}. */
const drafts = new Map(kept().map(({folder, name, text, known}) => [keyOf(folder, name), {folder, name, text, known}]))
let tell = () => {}, lose = () => {}, timer = null, going = null

const keep = () => remember('captions', drafts.size > 0 && JSON.stringify([...drafts.values()].slice(-MOST)))

/** Have each caption's fate told: tell(folder, name, {problems, caption: what its file holds, once it is taken}). */
export function onCaption(listener) { tell = listener }

/** What was typed for a picture and is not in its file yet, {text, problems}; undefined without it. */
export const draftOf = (folder, name) => drafts.get(keyOf(folder, name))

/** A person types; caption: what the file is known to hold. */
export function typed(folder, name, text, caption) {
  const draft = drafts.get(keyOf(folder, name)) ?? {folder, name, known: [caption]}
  if (draft.now !== undefined) draft.known = [draft.now]  // it has been told of: whoever writes on means to replace it
  drafts.set(keyOf(folder, name), Object.assign(draft, {text, problems: undefined, now: undefined}))
  keep()
  clearTimeout(timer)
  timer = setTimeout(send, TYPING)
}

/** Send what there is, again and again until it is taken or refused. */
export function send() {
  clearTimeout(timer)
  going ||= sendAll().finally(() => { going = null })
  return going
}

/** Send what there is, once; whether all of it was answered. */
export async function settle() {
  await new Promise(done => {
    lose = done
    send().then(done)
    wake()
  })
  return waiting() === undefined
}

const waiting = () => [...drafts.values()].find(draft => !draft.problems)

async function sendAll() {
  for (let draft, pause = SHORTEST; draft = waiting();) {
    if (await sendOne(draft)) pause = SHORTEST
    else {
      lose()
      await rest(pause)
      pause = Math.min(2 * pause, LONGEST)
    }
  }
}

/** Send one; false where nobody answered. */
async function sendOne(draft) {
  const {folder, name, text, known} = draft
  if (known.length === 1 && known[0] === text) taken(draft, text, text, null)  // typed, and taken back
  else {
    draft.known = [...new Set([...known, text])]  // it may be taken even though its answer never comes
    keep()
    try {
      const answer = await ask('captions', {folder, captions: {[name]: text}, known: {[name]: known}}, ANSWER)
      if (name in answer.captions) taken(draft, text, answer.captions[name], answer.problems)
      else refused(draft, text, answer.problems, answer.now[name])
    } catch (error) {
      if (!error.problems) {
        tell(folder, name, {problems: [{text: say('lost')}]})
        return false
      }
      refused(draft, text, problemsOf(error))
    }
  }
  keep()
  return true
}

function taken(draft, text, caption, problems) {
  draft.known = [caption]
  if (draft.text === text) drafts.delete(keyOf(draft.folder, draft.name))
  if (problems) tell(draft.folder, draft.name, {caption, problems})
}

/** Left to the person, who is told why beside the picture, unless there is more to send already. */
function refused(draft, text, problems, now) {
  if (draft.text !== text) return
  Object.assign(draft, {problems, now})
  tell(draft.folder, draft.name, {problems})
}

// Nobody can wait for an answer any more; what is lost now is sent again when the page is opened next.
window.addEventListener('pagehide', () => {
  for (const {folder, name, text, known, problems} of drafts.values()) {
    const body = JSON.stringify({folder, captions: {[name]: text}, known: {[name]: known}})
    if (!problems) navigator.sendBeacon(at('captions'), new Blob([body], {type: 'application/json'}))
  }
})
document.addEventListener('visibilitychange', () => { if (document.hidden) send() })
