// The pictures of the folder with their captions, editable in place and saved as they are written; changes to all of them.

import {ask, at, fill, find, make, note, problemsOf, root, say, section, sentence, told, wait} from './page-parts.js'
import {showProblems} from './page-settings.js'

const PAGE = 60  // pictures asked for at a time
const album = {values: null, folder: '', total: 0, shown: [], first: [], problems: {}, drafts: {}, tags: [], asked: 0}
const lazy = new IntersectionObserver(seen => {
  for (const one of seen) if (one.isIntersecting) { one.target.src = one.target.dataset.src; lazy.unobserve(one.target) }
}, {rootMargin: '400px'})

/** The pictures of these values, unless they are there already. */
export async function lookAgain(values) {
  if (!album.folder || JSON.stringify(values.data) !== JSON.stringify(album.values?.data)) await loadPictures(values)
}

let part = null
/** The section itself, made when the texts are there. */
export function pictures() { part ||= section('pictures', say('pictures')); return part.whole }

export async function loadPictures(values, more = false) {
  const asked = ++album.asked
  if (album.folder !== values.data?.path) album.drafts = {}
  album.values = values
  if (!values.data?.path) { album.folder = ''; album.shown = []; return drawPictures() }
  try {
    const found = await ask('pictures', {values, from: more ? album.shown.length : 0, count: PAGE, first: album.first})
    if (asked !== album.asked) return
    Object.assign(album, {...found, shown: more ? [...album.shown, ...found.pictures] : found.pictures, other: found.problems,
      tags: found.tags ?? album.tags, pictures: undefined})
    for (const problem of root().querySelectorAll('#aprendiz-data-path .ap-problem')) problem.remove()
    if (more && part.body.querySelector('.ap-grid')) return drawMore(found.pictures)
  } catch (error) {
    if (asked !== album.asked) return
    album.folder = ''; album.shown = []
    showProblems(error.problems || [])
  }
  drawPictures()
}

export function drawPictures() {
  const here = (pictures(), part.body), typing = here.contains(document.activeElement) ? document.activeElement : null
  if (!album.folder) return fill(here, make('p', {class: 'ap-soft'}, say('no_folder')))
  const troubled = new Set([...Object.keys(album.problems), ...album.shown.filter(one => one.problems.length).map(one => one.name)])
  const counted = say(troubled.size || album.troubled ? 'counted' : 'counted_well',
    {total: album.total, captioned: album.captioned, troubled: Math.max(troubled.size, album.troubled || 0)})
  fill(here,
    make('p', {class: 'ap-soft', id: 'aprendiz-counted'}, counted),
    ...(album.other || []).map(sentence),
    bench(), make('div', {class: 'ap-grid'}, ...album.shown.map(drawPicture)), moreButton())
  if (typing?.dataset.name) {  // drawn anew while somebody writes: the cursor stays where it was
    const again = [...here.querySelectorAll('textarea')].find(one => one.dataset.name === typing.dataset.name)
    again?.focus({preventScroll: true})
    again?.setSelectionRange(typing.selectionStart, typing.selectionEnd)
  }
}

/** Those that come after the ones that are there, which stay as they are: somebody may be writing. */
function drawMore(added) {
  part.body.querySelector('.ap-grid').append(...added.map(drawPicture))
  part.body.querySelector('.ap-next')?.replaceWith(moreButton() || '')
}

/** Asks for more when it comes into sight, or by hand. */
function moreButton() {
  if (album.shown.length >= album.total) return null
  const button = make('button', {class: 'ap-next', onclick: () => { button.disabled = true; loadPictures(album.values, true) }}, say('more'))
  ahead.disconnect()
  ahead.observe(button)
  return button
}

const ahead = new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting) && scrolled) seen[0].target.click() }, {rootMargin: '600px'})
let scrolled = false  // nobody is shown more than a page before having looked at the first
document.addEventListener('scroll', () => { scrolled = true }, {passive: true, capture: true})

function drawPicture(one) {
  const query = new URLSearchParams({folder: album.folder, name: one.name, v: one.stamp})
  const image = make('img', {alt: one.taught[0] || one.name, 'data-src': at('thumbnail?' + query), width: 128, height: 128})
  lazy.observe(image)
  const saved = make('span', {class: 'ap-soft', 'aria-live': 'polite'})
  const text = make('textarea', {rows: 3, 'aria-label': say('caption_of', {name: one.name}), placeholder: one.taught[0] || '',
    readonly: !one.editable, title: one.editable ? null : say('elsewhere'), maxlength: 20000, 'data-name': one.name})
  text.value = album.drafts[one.name] ?? one.caption ?? ''
  const problems = make('div', {})
  const tell = list => problems.replaceChildren(...list.map(sentence))
  tell(album.problems[one.name] || one.problems)
  let waiting = null
  const save = async () => {
    clearTimeout(waiting)
    if (text.value === (one.caption ?? '')) return void delete album.drafts[one.name]
    const value = text.value
    try {
      const answer = await ask('captions', {folder: album.folder, captions: {[one.name]: value}})
      tell(answer.problems)
      if (one.name in answer.captions) {
        Object.assign(one, {caption: answer.captions[one.name], problems: []})
        delete album.problems[one.name]
        if (album.drafts[one.name] === value) delete album.drafts[one.name]
        saved.textContent = say('saved')
      }
    } catch (error) { tell(problemsOf(error)) }
  }
  text.addEventListener('input', () => { album.drafts[one.name] = text.value; saved.textContent = ''; clearTimeout(waiting); waiting = setTimeout(save, 800) })
  text.addEventListener('blur', save)
  return make('figure', {class: troubledClass(one)}, make('a', {href: at('picture?' + query), target: '_blank', rel: 'noopener'}, image),
    make('figcaption', {class: 'ap-name', title: one.name}, one.name, ' ', saved), text, problems)
}

const troubledClass = one => (album.problems[one.name] || one.problems).length ? 'ap-trouble' : ''

// All captions of the folder at once

const kept = {open: false, from: '', to: ''}

async function edit(kind, from, by = '') {
  note(say('changing'))
  const {values} = album, folder = values.data.path
  const shown = () => album.values.data?.path === folder  // by now it may be another
  const done = await ask('edit', {values, kind, find: from, by})
  if (shown()) album.drafts = {}
  note(say('replaced', {count: done.count}), false, ' ',
    done.id && make('button', {onclick: guarded(async () => {
      const back = await ask('unedit', {id: done.id})
      note(say('replaced', {count: back.count}))
      if (shown()) await loadPictures(album.values)
    })}, say('undo')))
  if (!shown()) return
  await loadPictures(album.values)
  for (const problem of done.problems) part.body.prepend(sentence(problem))
}

const guarded = work => () => work().catch(error => note(error.message || say('lost'), true))

/** Find and replace, words in front and at the end, and the tags that captions share. */
function bench() {
  const field = (name, label) => {
    const input = make('input', {type: 'text', 'aria-label': label, placeholder: label, oninput: event => { kept[name] = event.target.value }})
    input.value = kept[name]
    return input
  }
  const from = field('from', say('replace_find')), to = field('to', say('replace_by'))
  const button = (text, kind) => make('button', {onclick: guarded(() => edit(kind, from.value, to.value))}, say(text))
  const trigger = find('aprendiz-data-trigger')?.querySelector('textarea, input')?.value.trim()
  const choose = tag => { from.value = kept.from = tag; from.focus() }
  const whole = make('details', {class: 'ap-bench', open: kept.open, ontoggle: event => { kept.open = event.target.open }},
    make('summary', {}, say('bench')),
    make('div', {class: 'ap-row'}, from, to, button('replace', 'replace'), button('rename_tag', 'rename'), button('remove_tag', 'remove'),
      button('add_front', 'front'), button('add_end', 'end'),
      trigger && make('button', {onclick: guarded(() => edit('front', trigger))}, say('write_trigger', {trigger}))),
    album.tags.length > 0 && make('div', {class: 'ap-tags', role: 'group', 'aria-label': say('tags')},
      ...album.tags.map(([tag, count]) => make('button', {class: 'ap-tag', title: say('tag_hint'), onclick: () => choose(tag)}, tag, ' ',
        make('span', {class: 'ap-soft ap-num'}, String(count))))))
  return whole
}

/** Check the whole job: problems go beside settings and pictures, the forecast above the buttons. */
let checking = 0
export async function check(values) {
  const mine = ++checking
  showProblems([], [say('checking')])
  await loadPictures(values)
  try {
    let answer = await ask('check', {values})
    while (!answer.done && mine === checking) {
      await wait(500)
      answer = await ask('check', {values})
    }
    if (mine !== checking) return
    album.problems = {}
    const known = new Set(told.settings.map(one => one.where))
    for (const problem of answer.problems) if (!known.has(problem.where)) (album.problems[problem.where] ||= []).push(problem)
    album.first = Object.keys(album.problems)
    if (album.first.length) await loadPictures(values)
    drawPictures()
    const names = new Set(album.shown.map(one => one.name))
    const elsewhere = answer.problems.filter(problem => !names.has(problem.where))
    const stopping = answer.problems.some(problem => !problem.warning)
    showProblems(elsewhere, [...(answer.forecast.lines || []), ...(stopping ? [] : [say('fine')])])
  } catch (error) { showProblems(problemsOf(error)) }
}
