// The settings, which are Gradio's: shown only where they count, marked where they are changed, problems beside them.

import {find, fill, make, root, say, sentence, told} from './page-parts.js'

export function clearProblems() {
  for (const old of root().querySelectorAll('#aprendiz-settings .ap-problem, #aprendiz-summary > *')) old.remove()
}

/** Show each problem under its setting, unfolding what hides it; those of no setting above the buttons. */
export function showProblems(problems, lines = []) {
  clearProblems()
  const summary = find('aprendiz-summary')
  const counting = new Set(told.settings.filter(one => one.method && !hiddenMethod(one)).map(one => one.id))
  let first = null
  for (const problem of problems) {
    const text = sentence(problem)
    const one = told.settings.find(one => one.where === problem.where && (!one.method || counting.has(one.id)))
    const control = one ? find(one.id) : problem.where === 'method.name' ? find('aprendiz-method-name') : null
    if (control) {
      control.append(text)
      unfold(control)
      first = first || control
    } else if (summary && summary.childElementCount < 40) summary.append(text)
  }
  for (const line of lines) summary?.append(make('p', {class: 'ap-soft'}, line))
  first?.scrollIntoView({block: 'center', behavior: 'auto'})
}

const hiddenMethod = one => { const control = find(one.id); return !control || control.offsetParent === null && !folded(control) }
const folded = control => control.closest('[id^="aprendiz-section-"]') !== null

function unfold(control) {
  if (control.offsetParent !== null) return
  const section = control.closest('[id^="aprendiz-section-"]')
  section?.querySelector('button, .label-wrap')?.click()
}

export function valueOf(one) {
  const input = find(one.id)?.querySelector('textarea, input, select')
  if (!input) return undefined
  return input.type === 'checkbox' ? input.checked : input.type === 'number' ? (input.value === '' ? null : Number(input.value)) : input.value
}

export function markSettings() {
  for (const one of told.settings) {
    const control = find(one.id)
    if (!control) continue
    const value = valueOf(one)
    control.classList.toggle('ap-changed', value !== undefined && String(value ?? '') !== String(one.default ?? ''))
    if (one.when) {
      const sibling = told.settings.find(other => other.id === one.when.id)
      control.classList.toggle('ap-idle', sibling && !one.when.values.map(String).includes(String(valueOf(sibling))))
    }
  }
}

/** What the run would come to, beside Start. */
export function showEstimate(lines) {
  const place = find('aprendiz-estimate')
  if (place) fill(place, ...lines.map(line => make('p', {class: 'ap-soft'}, line)))
}

export const estimateWaits = () => showEstimate([say('estimating')])
