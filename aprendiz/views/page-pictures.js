// The pictures of the folder with their captions, editable in place and saved as they are written; changes to all of them.

import {draftOf, onCaption, send, settle, typed} from './page-captions.js'
import {ask, at, fill, insist, make, note, noteError, problemsOf, say, section, sentence, told, wait} from './page-parts.js'
import {folderOf, form, valueOf} from './page-form.js'
import {showProblems, showProblemsOf} from './page-problems.js'

const PAGE = 60  // pictures asked for at a time
const LISTED = 120000  // milliseconds that a folder's list may take
const TRIES = 3, TRY_AGAIN = 3000  // of a thumbnail that did not come, and the milliseconds between them
const album = {form: null, folder: '', total: 0, shown: [], first: [], problems: {}, tags: [], asked: 0}
const lazy = new IntersectionObserver(seen => {
  for (const one of seen) if (one.isIntersecting) { one.target.src = one.target.dataset.src; lazy.unobserve(one.target) }
}, {rootMargin: '400px'})

/** What a form says of the pictures, and of nothing else. */
const ofPictures = form => JSON.stringify(Object.entries(form?.controls ?? {}).filter(([id]) => id.startsWith('aprendiz-data-')))

/** The pictures of this form, unless they are there already. */
export async function lookAgain(form) {
  if (!album.folder || ofPictures(form) !== ofPictures(album.form)) await loadPictures(form)
}

let part = null
/** The section itself, made when the texts are there. */
export function pictures() { part ||= section('pictures', say('pictures')); return part.whole }

async function loadPictures(form, more = false, silent = () => {}) {
  const asked = ++album.asked, wanted = () => asked === album.asked, others = ofPictures(form) !== ofPictures(album.form)
  album.form = form
  if (!folderOf(form)) { album.folder = ''; album.shown = []; return drawPictures() }
  try {
    const found = await insist('pictures', {form, from: more ? album.shown.length : 0, count: PAGE, first: album.first},
      {patience: LISTED, wanted, silent})
    if (!found) return
    const {problems: other, pictures: here, ...counts} = found
    if (counts.folder !== album.folder) album.problems = {}  // those that Check told were another folder's
    Object.assign(album, {...counts, shown: more ? [...album.shown, ...here] : here, other, tags: found.tags ?? album.tags})
    if (others) showProblemsOf('data', [])
    if (more && part.body.querySelector('.ap-grid')) return drawMore(found.pictures)
  } catch (error) {
    if (!wanted()) return
    album.folder = ''; album.shown = []
    showProblemsOf('data', problemsOf(error))
  }
  drawPictures()
}

export function drawPictures() {
  const here = (pictures(), part.body), typing = here.contains(document.activeElement) ? document.activeElement : null
  if (!album.folder) return fill(here, make('p', {class: 'ap-soft'}, say(folderOf(form()) ? 'not_shown' : 'no_folder')))
  fill(here,
    make('p', {class: 'ap-soft', id: 'aprendiz-counted'}, counted()),
    ...(album.other || []).map(sentence),
    bench(), make('div', {class: 'ap-grid'}, ...album.shown.map(drawPicture)), moreButton())
  if (typing?.dataset.name) {  // drawn anew while somebody writes: the cursor stays where it was
    const again = here.querySelector(`[data-name="${CSS.escape(typing.dataset.name)}"]`)
    again?.focus({preventScroll: true})
    if (typing.selectionStart !== undefined) again?.setSelectionRange(typing.selectionStart, typing.selectionEnd)
  }
}

/** How many there are, and how many need somebody. */
function counted() {
  const names = new Set([...Object.keys(album.problems), ...album.shown.filter(one => one.problems.length).map(one => one.name)])
  const troubled = Math.max(names.size, album.troubled || 0)
  return say(troubled ? 'counted' : 'counted_well', {total: album.total, captioned: album.captioned, troubled})
}

/** Those that come after the ones that are there, which stay as they are: somebody may be writing. */
function drawMore(added) {
  part.body.querySelector('.ap-grid').append(...added.map(drawPicture))
  part.body.querySelector('.ap-next')?.replaceWith(moreButton() || '')
}

/** Asks for more when it comes into sight, or by hand. */
function moreButton() {
  if (album.shown.length >= album.total) return null
  const button = make('button', {class: 'ap-next', onclick: () => { button.disabled = true; loadPictures(album.form, true) }}, say('more'))
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
  let tries = 0
  image.addEventListener('error', () => {
    if (tries++ < TRIES) setTimeout(() => { image.removeAttribute('src'); lazy.observe(image) }, TRY_AGAIN * tries)
  })
  const saved = make('span', {class: 'ap-soft', 'aria-live': 'polite'})
  const text = make('textarea', {rows: 3, 'aria-label': say('caption_of', {name: one.name}), placeholder: one.taught[0] || '',
    readonly: !one.editable, title: one.editable ? null : say('elsewhere'), maxlength: 20000, 'data-name': one.name})
  const {folder} = album, draft = draftOf(folder, one.name)
  text.value = draft?.text ?? one.caption ?? ''
  const problems = make('div', {})
  text.addEventListener('input', () => { saved.textContent = ''; typed(folder, one.name, text.value, one.caption ?? '') })
  text.addEventListener('blur', send)
  const figure = make('figure', {}, make('a', {href: at('picture?' + query), target: '_blank', rel: 'noopener'}, image),
    make('figcaption', {class: 'ap-name', title: one.name}, one.name, ' ', saved), text, problems)
  const tell = list => {
    problems.replaceChildren(...list.map(sentence))
    figure.classList.toggle('ap-trouble', list.length > 0)
  }
  tell(draft?.problems || album.problems[one.name] || one.problems)
  figure.fate = told => {
    tell(told.problems)
    if ('caption' in told && !draftOf(folder, one.name)) saved.textContent = say('saved')
  }
  return figure
}

onCaption((folder, name, told) => {
  if (folder !== album.folder) return
  const one = album.shown.find(one => one.name === name)
  if (one && 'caption' in told) {
    album.captioned += Boolean(told.caption) - Boolean(one.caption)
    if (album.troubled && one.problems.length) album.troubled--
    Object.assign(one, {caption: told.caption, problems: []})
    delete album.problems[name]
    const line = part.body.querySelector('#aprendiz-counted')
    if (line) line.textContent = counted()
  }
  part?.body.querySelector(`textarea[data-name="${CSS.escape(name)}"]`)?.closest('figure').fate(told)
})

// All captions of the folder at once

const kept = {open: false, from: '', to: ''}

async function edit(kind, from, by = '') {
  note(say('changing'))
  const {form, folder} = album
  if (!await settle()) return note(say('unheard'), true)  // what is being written first, or it would be changed under the writer
  const shown = () => album.folder === folder  // by now it may be another
  const done = await ask('edit', {form, kind, find: from, by})
  note(say('replaced', {count: done.count}), false, ' ',
    done.id && make('button', {onclick: guarded(async () => {
      const back = await ask('unedit', {id: done.id})
      note(say('replaced', {count: back.count}))
      if (shown()) await loadPictures(album.form)
    })}, say('undo')))
  if (!shown()) return
  await loadPictures(album.form)
  for (const problem of done.problems) part.body.prepend(sentence(problem))
}

const guarded = work => () => work().catch(noteError)

/** Find and replace, words in front and at the end, and the tags that captions share. */
function bench() {
  const field = (name, label) => {
    const input = make('input', {type: 'text', 'aria-label': label, placeholder: label, 'data-name': `? ${name}`, oninput: event => { kept[name] = event.target.value }})
    input.value = kept[name]
    return input
  }
  const from = field('from', say('replace_find')), to = field('to', say('replace_by'))
  const button = (text, kind) => make('button', {'data-name': `? ${kind}`, onclick: guarded(() => edit(kind, from.value, to.value))}, say(text))
  const trigger = valueOf('aprendiz-data-trigger').trim()
  const choose = tag => { from.value = kept.from = tag; from.focus() }
  const whole = make('details', {class: 'ap-bench', open: kept.open, ontoggle: event => { kept.open = event.target.open }},
    make('summary', {}, say('bench')),
    make('div', {class: 'ap-row'}, from, to, button('replace', 'replace'), button('rename_tag', 'rename'), button('remove_tag', 'remove'),
      button('add_front', 'front'), button('add_end', 'end'),
      trigger && make('button', {'data-name': '? trigger', onclick: guarded(() => edit('front', trigger))}, say('write_trigger', {trigger}))),
    album.tags.length > 0 && make('div', {class: 'ap-tags', role: 'group', 'aria-label': say('tags')},
      ...album.tags.map(([tag, count]) => make('button', {class: 'ap-tag', title: say('tag_hint'), onclick: () => choose(tag)}, tag, ' ',
        make('span', {class: 'ap-soft ap-num'}, String(count))))))
  return whole
}

/** Show problems beside the pictures and settings that they name, and the pictures in trouble first. */
export async function placeProblems(form, problems, lines = []) {
  const before = album.first.join('\n'), known = new Set(['method.name', ...told.settings.map(one => one.where)])
  album.problems = {}
  for (const problem of problems) if (problem.where && !known.has(problem.where)) (album.problems[problem.where] ||= []).push(problem)
  album.first = Object.keys(album.problems)
  if (album.first.join('\n') !== before) await loadPictures(form)  // in another order now
  drawPictures()
  const names = new Set(album.shown.map(one => one.name))
  showProblems(problems.filter(problem => !names.has(problem.where)), lines)
}

let checks = 0, underway = 0  // the number of the check that is being made, 0 where none is
/** What is being checked is told no more; whether anything was. */
export function leaveCheck() {
  const was = underway > 0
  underway = 0
  return was
}

/** Check the whole job: problems go beside settings and pictures, the forecast above the buttons. */
export async function check(form) {
  const mine = underway = ++checks, wanted = () => mine === underway
  const silent = yes => wanted() && showProblems(yes ? [{text: say('lost')}] : [], yes ? [] : [say('checking')])
  silent(false)
  send()  // what is written beside the pictures is to be checked too
  try {
    await loadPictures(form, false, silent)
    let answer = await insist('check', {form}, {wanted, silent})
    while (answer && !answer.done) {
      await wait(500)
      answer = await insist('check', {form}, {wanted, silent})
    }
    if (!answer) return
    const stopping = answer.problems.filter(problem => !problem.warning).length
    underway = 0
    await placeProblems(form, answer.problems, [...(answer.forecast.lines || []), stopping ? say('not_yet', {count: stopping}) : say('fine')])
  } catch (error) { if (wanted()) { underway = 0; showProblems(problemsOf(error)) } }
}
