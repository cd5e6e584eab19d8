// What every part of the page stands on: elements, texts, the routes, and Gradio's own components reached from outside.
//
// All text goes in as text, never as HTML. No dependencies.

export const at = path => new URL(path, import.meta.url).href
export const root = () => (window.gradioApp ? window.gradioApp() : document)
export const find = id => root().querySelector('#' + CSS.escape(id))

const LONGEST_LOOK = 20000  // milliseconds

/** What the page was told once, by the route `words`: texts, settings, methods, samplers. */
export const told = {words: {}, panel: {}, settings: [], methods: {}, samplers: [], largest_picture: 0}
export const say = (key, fields = {}) => (told.words[key] || key).replace(/{(\w+)}/g, (all, name) => fields[name] ?? all)

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

/** Ask a route, with an object or a file; an object. What a person can mend is thrown with its `problems`. */
export async function ask(path, body) {
  // What is only looked at is asked for again, so nobody waits for an answer that a cut connection will never bring.
  const how = body === undefined ? {signal: AbortSignal.timeout(LONGEST_LOOK)} : body instanceof Blob ? {method: 'POST', body, headers: {'Content-Type': 'application/octet-stream'}}
    : {method: 'POST', body: JSON.stringify(body), headers: {'Content-Type': 'application/json'}}
  const answer = await fetch(at(path), how)
  const value = await answer.json().catch(() => ({problems: []}))
  if (!answer.ok) throw Object.assign(new Error(value.problems?.[0]?.text || answer.statusText), {problems: value.problems || []})
  return value
}

/** The problems of what `ask` threw: at least one. */
export const problemsOf = error => (error.problems?.length ? error.problems : [{text: say('lost')}])

export const filePath = (name, file) => `runs/${encodeURIComponent(name)}/files/${String(file).split('/').map(encodeURIComponent).join('/')}`
export const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds))

// One line above all, for what happened

export const state = make('p', {class: 'ap-note', role: 'status', 'aria-live': 'polite', hidden: true})

export function note(text, bad = false, ...more) {
  fill(state, text, ...more)
  state.hidden = !text
  state.classList.toggle('ap-bad', bad)
}

// Gradio's components

/** Set a text component from outside. */
export function write(id, value) {
  const input = find(id)?.querySelector('textarea, input')
  if (!input) return
  const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), 'value').set
  set.call(input, value)
  input.dispatchEvent(new Event('input', {bubbles: true}))
}

export function press(id) {
  const part = find(id)
  const button = part?.tagName === 'BUTTON' ? part : part?.querySelector('button')
  button?.click()
}
