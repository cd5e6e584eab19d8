// The settings, which are Gradio's: shown only where they count, marked where they are changed, problems beside them.

import {find, fill, make, press, root, say, sentence, told, write} from './page-parts.js'

const UNFOLDING = 250  // milliseconds until what was unfolded is there

export function clearProblems() {
  for (const old of root().querySelectorAll('#aprendiz-settings .ap-problem, #aprendiz-summary > *')) old.remove()
}

/** Show each problem under its setting, unfolding what hides it; those of no setting above the buttons. */
export function showProblems(problems, lines = []) {
  clearProblems()
  const summary = find('aprendiz-summary')
  const method = chosenMethod(), late = []
  let first = null
  const beside = (control, text) => {
    control.append(text)
    if (!first) control.scrollIntoView({block: 'center', behavior: 'auto'})
    first = first || control
  }
  const above = text => { if (summary && summary.childElementCount < 40) summary.append(text) }
  for (const problem of problems) {
    const text = sentence(problem)
    const one = told.settings.find(one => one.where === problem.where && (!one.method || one.method === method))
    const control = one ? find(one.id) : problem.where === 'method.name' ? find('aprendiz-method-name') : null
    if (control?.offsetParent) beside(control, text)
    else if (one && !idle(control) && isFolded(sectionOf(one))) late.push([one, text])
    else above(text)
  }
  for (const line of lines) summary?.append(make('p', {class: 'ap-soft'}, line))
  if (!first && !late.length && summary?.childElementCount) summary.scrollIntoView({block: 'nearest', behavior: 'auto'})
  // What is folded away is unfolded first: newer Gradios make it only then.
  for (const section of new Set(late.map(([one]) => sectionOf(one)))) section.querySelector('button, .label-wrap')?.click()
  if (late.length) setTimeout(() => {
    markSettings()
    for (const [one, text] of late) find(one.id) && !idle(find(one.id)) ? beside(find(one.id), text) : above(text)
  }, UNFOLDING)
}

/** Whether a control is not shown because it does not count at the moment. */
const idle = control => control?.classList.contains('ap-idle')
const isFolded = section => section && !section.querySelector('.label-wrap')?.classList.contains('open')

/** The method that is chosen, by what its chooser shows. */
function chosenMethod() {
  const shown = find('aprendiz-method-name')?.querySelector('input, select')?.value
  return Object.entries(told.methods).find(([, one]) => one.title === shown)?.[0]
}

const sectionOf = one => find(`aprendiz-section-${(one.method || one.where.split('.')[0]).replaceAll('_', '-')}`)

export function valueOf(one) {
  const input = find(one.id)?.querySelector('textarea, input, select')
  if (!input) return undefined
  return input.type === 'checkbox' ? input.checked : input.type === 'number' ? (input.value === '' ? null : Number(input.value)) : input.value
}

const changes = {}  // by id; what is folded away is not there to be asked

/** What is not as it is at first, by the controls' ids, and the method that is chosen. */
export const changedSettings = () => ({...changes, method: chosenMethod()})

export function markSettings() {
  for (const one of told.settings) {
    const control = find(one.id)
    if (!control) continue
    const value = valueOf(one)
    const changed = value !== undefined && String(value ?? '') !== String(one.default ?? '')
    control.classList.toggle('ap-changed', changed)
    if (changed) changes[one.id] = value
    else if (value !== undefined) delete changes[one.id]
    const back = control.querySelector('.ap-back')
    if (changed && !back) control.append(backButton(one))
    else if (!changed) back?.remove()
    if (one.when) {
      const sibling = told.settings.find(other => other.id === one.when.id)
      control.classList.toggle('ap-idle', sibling && !one.when.values.map(String).includes(String(valueOf(sibling))))
    }
  }
}

/** Puts a changed setting back to its default, by way of Gradio, which alone can set every kind of control. */
function backButton(one) {
  const was = one.default === '' || one.default === null ? say('nothing') : String(one.default)
  return make('button', {class: 'ap-back', type: 'button', title: say('default_is', {value: was}), onclick: event => {
    event.preventDefault()
    write('aprendiz-wanted', JSON.stringify({[one.id]: one.default}))
    setTimeout(() => press('aprendiz-fill'), 50)
    setTimeout(() => press('aprendiz-look'), 1200)
  }}, say('put_back'))
}

/** What the run would come to, beside Start. */
export function showEstimate(lines) {
  const place = find('aprendiz-estimate')
  if (place) fill(place, ...lines.map(line => make('p', {class: 'ap-soft'}, line)))
}

export const estimateWaits = () => showEstimate([say('estimating')])
