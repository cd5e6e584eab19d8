// What every part of the page stands on: elements, texts, the routes.
//
// All text goes in as text, never as HTML. No dependencies.

// These files have another folder's name each time they are asked for again; what else there is stands beside the first.
const HERE = import.meta.url.replace(/\/again-\d+\//, '/')
export const at = path => new URL(path, HERE).href
export const root = () => (window.gradioApp ? window.gradioApp() : document)
export const find = id => root().querySelector('#' + CSS.escape(id))

const LONGEST_LOOK = 20000, LONGEST_WORK = 600000  // milliseconds
const SHORTEST_PAUSE = 1000, LONGEST_PAUSE = 15000

/** What the page was told once, by the route `words`: texts, what the form is drawn from, methods, samplers. */
export const told = {words: {}, panel: {}, settings: [], sections: [], presets: [], cards: [], methods: {}, samplers: [], largest_picture: 0}
export const say = (key, fields = {}) => (told.words[key] ?? early(key) ?? key).replace(/{(\w+)}/g, (all, name) => fields[name] ?? all)

/** A text that is needed before the texts have come: the host's page brings it. */
function early(key) {
  const brought = find('aprendiz')?.dataset.words
  return brought && JSON.parse(brought)[key]
}

const there = child => child !== null && child !== undefined && child !== false

/** An element: make('button', {class: 'main', onclick: f}, 'Start'). Children are elements or texts; what is nothing is left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (value === true) element.setAttribute(name, '')
    else if (there(value)) element.setAttribute(name, value)
  }
  element.append(...children.filter(there))
  return element
}

/** Put these children in place of what is there. */
export const fill = (element, ...children) => element.replaceChildren(...children.filter(there))

/** A problem's sentence, in its colour. */
export const sentence = problem =>
  make('p', {class: problem.warning ? 'ap-problem ap-warning' : 'ap-problem', role: 'alert'}, problem.text)

/** A part of the page under a heading that folds it; whether it is open is remembered. */
export function section(name, title, open = true) {
  const body = make('div', {class: 'ap-body'})
  const whole = make('details', {class: `ap-section ap-${name}`, open: remembered(`open-${name}`, open ? 'yes' : 'no') === 'yes'},
    make('summary', {}, make('h3', {}, title)), body)
  whole.addEventListener('toggle', () => remember(`open-${name}`, whole.open ? 'yes' : 'no'))
  return {whole, body}
}

/** Keep a word in this browser; nothing forgets it. */
export function remember(name, value) {
  try { value ? localStorage.setItem(`aprendiz-${name}`, value) : localStorage.removeItem(`aprendiz-${name}`) } catch { /* a browser that keeps nothing */ }
}

export function remembered(name, otherwise = null) {
  try { return localStorage.getItem(`aprendiz-${name}`) ?? otherwise } catch { return otherwise }
}

/** Ask a route, with an object or a file; an object. What was answered and is no success is thrown with its `problems`, one at least;
 * what is thrown without was answered by nobody, or by a host that has not mounted our routes yet. */
export async function ask(path, body, patience = body === undefined ? LONGEST_LOOK : LONGEST_WORK) {
  const how = {signal: AbortSignal.timeout(patience)}  // a cut connection never brings an answer
  if (body instanceof Blob) Object.assign(how, {method: 'POST', body, headers: {'Content-Type': 'application/octet-stream'}})
  else if (body !== undefined) Object.assign(how, {method: 'POST', body: JSON.stringify(body), headers: {'Content-Type': 'application/json'}})
  const answer = await fetch(at(path), how)
  if (answer.ok) return answer.json()
  const {problems} = await answer.json().catch(() => ({})), {status} = answer, ours = answer.headers.has('X-Aprendiz')
  if (!ours && [404, 502, 503, 504].includes(status)) throw new Error(String(status))
  const text = !ours && [401, 403].includes(status) ? say('login') : say('refused', {status})
  throw Object.assign(new Error(String(status)), {problems: problems?.length ? problems : [{text}]})
}

/** Ask until somebody answers, with growing pauses, for what may be asked for twice; null once it is not `wanted` any more.
 * silent(true): nobody answers; silent(false): somebody does again. */
export async function insist(path, body, {patience = LONGEST_LOOK, wanted = () => true, silent = () => {}} = {}) {
  for (let pause = SHORTEST_PAUSE, alone = false; wanted(); pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    try {
      const answer = await ask(path, body, patience)
      if (alone && wanted()) silent(false)
      return wanted() ? answer : null
    } catch (error) {
      if (error.problems) throw error
      if (wanted()) silent(alone = true)
    }
    await rest(pause)
  }
  return null
}

/** The problems of what `ask` threw: one at least. */
export const problemsOf = error => error.problems ?? [{text: say('unheard')}]

/** The same as one sentence above all. */
export const noteError = error => note(problemsOf(error)[0].text, true)

export const filePath = (name, file) => `runs/${encodeURIComponent(name)}/files/${String(file).split('/').map(encodeURIComponent).join('/')}`
export const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds))

const resting = new Set()
/** Wait until then, or until the server answers again. */
export const rest = milliseconds => new Promise(done => { resting.add(done); setTimeout(() => { resting.delete(done); done() }, milliseconds) })
export const wake = () => { for (const done of resting) { resting.delete(done); done() } }

// Above all: a line for a server that does not answer, and one for what happened

export const silence = make('p', {class: 'ap-silence', role: 'status', 'aria-live': 'polite', hidden: true})
export const state = make('p', {class: 'ap-note', role: 'status', 'aria-live': 'polite', hidden: true})

export function note(text, bad = false, ...more) {
  fill(state, text, ...more)
  state.hidden = !text
  state.classList.toggle('ap-bad', bad)
}
