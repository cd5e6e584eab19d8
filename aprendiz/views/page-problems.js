// What is wrong, beside the setting that it concerns, or above the buttons; and what the run would come to.

import {fieldOf} from './page-form.js'
import {fill, make, root, say, sentence} from './page-parts.js'

const MOST = 40  // above the buttons

export const summary = make('div', {id: 'aprendiz-summary', role: 'status', 'aria-live': 'polite'})
export const estimate = make('div', {id: 'aprendiz-estimate', 'aria-live': 'polite'})

export function clearProblems() {
  for (const old of root().querySelectorAll('#aprendiz-settings .ap-problem')) old.remove()
  fill(summary)
}

/** Show each problem under its setting, unfolding what hides it; those of no setting that is shown above the buttons. */
export function showProblems(problems, lines = []) {
  clearProblems()
  let first = null
  for (const problem of problems) {
    const field = fieldOf(problem.where), text = sentence(problem)
    if (!field || field.box.hidden) {  // it does not count at the moment, as far as the form can tell
      if (summary.childElementCount < MOST) summary.append(text)
      continue
    }
    if (field.fold) field.fold.open = true
    field.box.append(text)
    first ??= field.box
  }
  for (const line of lines) summary.append(make('p', {class: 'ap-soft'}, line))
  if (first) first.scrollIntoView({block: 'center', behavior: 'auto'})
  else if (summary.childElementCount) summary.scrollIntoView({block: 'nearest', behavior: 'auto'})
}

/** What the run would come to, beside Start. */
export const showEstimate = lines => fill(estimate, ...lines.map(line => make('p', {class: 'ap-soft'}, line)))

export const estimateWaits = () => showEstimate([say('estimating')])
