// What is wrong, beside the setting that it concerns, or above the buttons; and what the run would come to.

import {fieldOf, settings, valueOf} from './page-form.js'
import {fill, make, say, sentence} from './page-parts.js'

const MOST = 40  // above the buttons

export const summary = make('div', {id: 'aprendiz-summary', role: 'status', 'aria-live': 'polite'})
export const estimate = make('div', {id: 'aprendiz-estimate', 'aria-live': 'polite'})

export function clearProblems() {
  clear('.ap-setting > .ap-problem')
  fill(summary)
}

function clear(which) {
  for (const old of settings().querySelectorAll(which)) {
    describe(old.parentNode, false)
    old.remove()
  }
}

/** What was changed since is no longer known to be wrong. */
export function clearChanged() {
  for (const [box, value] of wrong) if (valueOf(box.id) !== value) clear(`#${box.id} > .ap-problem`)
}

const wrong = new Map()  // by box: what stood there

/** Tell those who hear the page what is wrong with a setting, or that nothing is. */
function describe(box, yes) {
  const input = box.querySelector('input, select, textarea')
  if (yes) wrong.set(box, valueOf(box.id))
  else wrong.delete(box)
  input.setAttribute('aria-invalid', String(yes))
  input.setAttribute('aria-describedby', yes ? `${box.id}-help ${box.id}-wrong` : `${box.id}-help`)
}

function beside(box, problem) {
  const text = sentence(problem)
  text.id = `${box.id}-wrong`
  box.append(text)
  describe(box, true)
}

/** In place of what was told of one section's settings; whoever is filling them in is not led away from them. */
export function showProblemsOf(section, problems) {
  clear(`[id^="aprendiz-${section}-"] > .ap-problem`)
  for (const problem of problems) beside((fieldOf(problem.where) ?? fieldOf(`${section}.path`)).box, problem)
}

/** Show each problem under its setting, unfolding what hides it; those of no setting that is shown above the buttons. */
export function showProblems(problems, lines = []) {
  clearProblems()
  let first = null
  for (const problem of problems) {
    const field = fieldOf(problem.where)
    if (!field || field.box.hidden) {  // it does not count at the moment, as far as the form can tell
      if (summary.childElementCount < MOST) summary.append(sentence(problem))
      continue
    }
    if (field.fold) field.fold.open = true
    beside(field.box, problem)
    first ??= field.box
  }
  for (const line of lines) summary.append(make('p', {class: 'ap-soft'}, line))
  if (first) first.scrollIntoView({block: 'center', behavior: 'auto'})
  else if (summary.childElementCount) summary.scrollIntoView({block: 'nearest', behavior: 'auto'})
}

/** What the run would come to, beside Start. */
export const showEstimate = lines => fill(estimate, ...lines.map(line => make('p', {class: 'ap-soft'}, line)))

export const estimateWaits = () => showEstimate([say('estimating')])
