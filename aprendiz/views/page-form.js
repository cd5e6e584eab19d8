// The form of the settings, drawn from the schema: shown where they count, marked where they are changed. What is filled in stays
// in this tab of the browser when the page is loaded anew.

import {fill, find, make, say, section, told} from './page-parts.js'

const KEPT = 'aprendiz-form'
const TYPED = ' path'          // no file is called so
const fields = new Map()       // by id: {one, box, back, read, write}
const choosers = {}            // method, preset, card
const own = []                 // what belongs to one method: [its name, element]
let whole = null, allBack = null

/** The form itself, made when the texts are there. It tells of each change by `input` or `change`. */
export function settings() {
  if (!whole) build()
  return whole
}

/** What is filled in, as the routes take it: what stands as it does at first is not named. */
export const form = () => ({method: method(), controls: changed()})

/** The method that is chosen. */
export const method = () => choosers.method.value

/** The folder of pictures that a form names. */
export const folderOf = form => (form.controls['aprendiz-data-path'] ?? '').trim()

/** What stands in a setting, or which method is chosen. */
export const valueOf = id => fields.get(id)?.read() ?? method()

/** Put values in, by the settings' ids; `anew`: what is not named gets its default. */
export function fillIn({method: name, controls}, anew = false) {
  if (Object.hasOwn(told.methods, name)) choosers.method.value = name
  if (anew) for (const one of ['preset', 'card']) { choosers[one].value = ''; delete laid[one] }  // what was filled in by them is gone
  for (const [id, {one, write}] of fields) {
    if (controls[id] !== undefined) write(controls[id])
    else if (anew) write(one.default)
  }
  whole.dispatchEvent(new Event('change'))
}

/** The setting that a problem names, for the method that is chosen: its box and the section it is folded in; null where there is none. */
export function fieldOf(where) {
  if (where === 'method.name') return {box: choosers.method.closest('.ap-setting')}
  const field = [...fields.values()].find(({one}) => one.where === where && ['', method()].includes(one.method))
  return field ? {box: field.box, fold: field.box.closest('details')} : null
}

const plain = value => typeof value === 'boolean' ? value : String(value ?? '')
const isChanged = ({one, read}) => read() !== plain(one.default)
const changed = () => Object.fromEntries([...fields].filter(([, field]) => isChanged(field)).map(([id, {read}]) => [id, read()]))

/** Show what counts, and what was changed. */
function mark() {
  if (choosers.preset.dataset.method !== method()) listPresets()
  for (const field of fields.values()) {
    const {one, box, back} = field, yes = isChanged(field)
    box.classList.toggle('ap-changed', yes)
    back.hidden = !yes
    box.hidden = one.when !== null && !one.when.values.map(plain).includes(valueOf(one.when.id))
  }
  for (const [name, element] of own) element.hidden = name !== method()
  allBack.hidden = ![...fields.values()].some(field => ['', method()].includes(field.one.method) && isChanged(field))
}

// Drawing

function build() {
  const drawn = which => told.settings.filter(which).map(draw)
  const folded = (name, title, ...inside) => {
    const {whole, body} = section(`section-${name}`, title, false)
    whole.id = `aprendiz-section-${name}`
    body.append(grid(...inside))
    return whole
  }
  const names = Object.keys(told.methods), slug = name => name.replaceAll('_', '-')
  allBack = make('button', {id: 'aprendiz-all-back', type: 'button', onclick: () => { fillIn({controls: {}}, true); choosers.method.focus() }}, say('put_all_back'))
  whole = make('div', {id: 'aprendiz-settings'},
    make('button', {class: 'ap-skip', type: 'button', onclick: () => find('aprendiz-start').focus()}, say('to_start')),
    make('div', {class: 'ap-section'},
      grid(...drawn(one => one.basic && sectionOf(one) === 'base'),
        chooser('method', {id: 'aprendiz-method-name', class: 'ap-setting ap-wide'}, names.map(name => [name, told.methods[name].title])),
        chooser('preset'), chooser('card', {}, [['', say('as_it_is')], ...told.cards.map((one, index) => [index, one.title])]),
        ...drawn(one => one.basic && !one.method && sectionOf(one) !== 'base')),
      ...names.map(name => owned(name, grid(...drawn(one => one.basic && one.method === name)))),
      allBack),
    ...names.map(name => owned(name, folded(slug(name), told.methods[name].title, ...drawn(one => !one.basic && one.method === name)))),
    ...told.sections.map(({name, title}) => folded(name, title, ...drawn(one => !one.basic && !one.method && sectionOf(one) === name))))
  listPresets()
  choosers.preset.addEventListener('change', () => lay('preset', presets()[choosers.preset.value]))
  choosers.card.addEventListener('change', () => lay('card', told.cards[choosers.card.value]))
  for (const kind of ['input', 'change']) whole.addEventListener(kind, () => { mark(); keep() })
}

const laid = {}  // by chooser: what it filled in last, and what stood there before: {id: [is, was]}

/** Fill in what is chosen, in place of what was chosen before: arrow keys choose one after the other. */
function lay(name, {controls} = {controls: {}}) {
  lift(name)
  laid[name] = Object.fromEntries(Object.entries(controls).map(([id, is]) => [id, [plain(is), valueOf(id)]]))
  fillIn({controls})
}

/** Take back what a chooser filled in, but for what was changed since. */
function lift(name) {
  for (const [id, [is, was]] of Object.entries(laid[name] ?? {})) if (valueOf(id) === is) fields.get(id).write(was)
  delete laid[name]
}

const sectionOf = one => one.where.split('.')[0]
const grid = (...inside) => make('div', {class: 'ap-fields'}, ...inside)

function owned(name, element) {
  own.push([name, element])
  return element
}

/** The presets of the method that is chosen; one of another method is no more chosen then. */
const presets = () => told.presets.filter(one => ['', method()].includes(one.method))
function listPresets() {
  options(choosers.preset, [['', say('as_it_is')], ...presets().map((one, index) => [index, one.title])])
  choosers.preset.dataset.method = method()
  lift('preset')
}

const options = (select, pairs) => fill(select, ...pairs.map(([value, text]) => make('option', {value}, text)))

function chooser(name, attributes = {}, pairs = []) {
  const id = attributes.id ?? `aprendiz-${name}`
  choosers[name] = make('select', {id: `${id}-value`, 'aria-describedby': `${id}-help`})
  options(choosers[name], pairs)
  return make('div', {class: 'ap-setting', id, ...attributes}, make('div', {class: 'ap-head'}, make('label', {for: `${id}-value`}, say(name))),
    make('span', {class: 'ap-soft', id: `${id}-help`}, say(`${name}_help`)), choosers[name])
}

/** A setting: its name, what it does, where it is written. */
function draw(one) {
  const {inputs, read, write} = (WRITTEN[one.listed ? 'listed' : one.kind] || WRITTEN.text)(one), [first] = inputs
  Object.assign(first, {id: `${one.id}-value`})
  first.setAttribute('aria-describedby', `${one.id}-help`)
  const was = one.default === '' || one.default === null ? say('nothing') : String(one.default)
  const back = make('button', {class: 'ap-back', type: 'button', hidden: true, title: say('default_is', {value: was}),
    'aria-label': `${say('put_back')}: ${one.label}`,
    onclick: () => { fillIn({controls: {[one.id]: one.default}}); first.focus() }}, say('put_back'))
  const name = make('label', {for: first.id}, one.label), check = one.kind === 'checkbox'
  const wide = one.path || one.kind === 'lines'
  const box = make('div', {class: wide ? 'ap-setting ap-wide' : 'ap-setting', id: one.id},
    make('div', {class: 'ap-head'}, check && first, name, back), make('span', {class: 'ap-soft', id: `${one.id}-help`}, one.help), ...check ? [] : inputs)
  fields.set(one.id, {one, box, back, read, write})
  write(one.default)
  return box
}

const line = (attributes, value = '') => Object.assign(make('input', {type: 'text', autocomplete: 'off', spellcheck: 'false', ...attributes}), {value})
const written = input => ({inputs: [input], read: () => input.value, write: value => { input.value = plain(value) }})

/** How a setting of each kind is written, read and filled in. */
const WRITTEN = {
  text: one => written(line({placeholder: one.empty})),
  number: one => written(line({placeholder: one.empty, inputmode: 'numeric'})),
  lines: one => written(make('textarea', {rows: 3, placeholder: one.empty})),
  checkbox() {
    const input = make('input', {type: 'checkbox'})
    return {inputs: [input], read: () => input.checked, write: value => { input.checked = Boolean(value) }}
  },
  choice(one) {
    const input = make('select')
    options(input, one.choices.map(name => [name, name]))
    return {...written(input), write: value => among(input, plain(value))}
  },
  listed(one) {  // files by their names, where these tell them apart
    const names = one.choices.map(path => path.split(/[\\/]/).pop())
    const input = make('select'), path = line({'aria-label': say('path_of', {name: one.label}), placeholder: say('path_of', {name: one.label})})
    options(input, [...one.choices.map((path, index) => [path, names.indexOf(names[index]) === names.lastIndexOf(names[index]) ? names[index] : path]),
      [TYPED, say('by_path')]])
    const show = () => { path.hidden = input.value !== TYPED }
    input.addEventListener('change', show)
    const write = value => {
      const known = one.choices.includes(value)
      input.value = known ? value : TYPED
      path.value = known ? '' : plain(value)
      show()
    }
    return {inputs: [input, path], read: () => input.value === TYPED ? path.value : input.value, write}
  },
}

/** Choose a value, also one that is no choice: what a run was made with is shown, and told to be wrong by the schema. */
function among(select, value) {
  if (![...select.options].some(one => one.value === value)) select.append(make('option', {value}, value))
  select.value = value
}

// Kept in this tab

const keep = () => {
  const chosen = {preset: choosers.preset.value, card: choosers.card.value}
  try { sessionStorage.setItem(KEPT, JSON.stringify({...form(), chosen, laid})) } catch { /* it keeps nothing */ }
}

/** Fill in what was filled in before the page was loaded anew. */
export function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT))
    if (kept) {
      fillIn(kept)
      for (const [name, value] of Object.entries(kept.chosen)) if ([...choosers[name].options].some(one => one.value === value)) choosers[name].value = value
      Object.assign(laid, kept.laid)
      return keep()
    }
  } catch { /* it keeps nothing */ }
  mark()
}
