// Aprendiz in ComfyUI's page: the run panel on training nodes, a sidebar tab with all runs, toasts, commands, settings.
//
// Everything that lives is asked from our routes (/aprendiz/...), so a reloaded page shows a run as it is. Nodes are changed one by
// one, as they are created; no prototype is touched, and nothing is drawn on the canvas: classic nodes and Nodes 2.0 are alike. What
// the first Nodes 2.0 cannot do is done for them in a part of its own.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

const TRAIN = /^AprendizTrain[A-Z]/
const TELLS = ['AprendizInspect', 'AprendizDatasetFolder', 'AprendizDatasetImages']   // nodes whose text result is shown
const POLL = 1000                        // milliseconds between two looks at a run that lives
const LIST = 5000                        // and at the list of all runs
const PICTURE = /\.(png|jpe?g|webp|bmp|avif)$/i, KNOWN = [PICTURE, /\.(txt|caption)$/i, /^metadata\.(jsonl|csv)$/i, /^concept\.json$/i]
const LOW = 360, HIGH = 760              // pixels of the panel on a node
const ALIVE = ['queued', 'running', 'paused']

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}
const language = () => app.extensionManager?.setting?.get?.('Comfy.Locale') || navigator.language || 'en'
let texts = {}, table = {}, schema = 0
const say = (key, fields = {}) => (texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => fields[name] ?? whole)
const wish = (id, otherwise) => { try { return app.extensionManager.setting.get(id) ?? otherwise } catch { return otherwise } }

async function ask(path, body) {
  const answer = await api.fetchApi(`/aprendiz/${path}`, body === undefined ? {} :
    { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
  if (answer.ok) return answer.json()
  const told = await answer.json().catch(() => ({}))
  throw Object.assign(new Error(told.error ?? answer.statusText), { gone: answer.status === 404 && 'error' in told })
}

const toast = (severity, detail) => app.extensionManager?.toast?.add?.({ severity, summary: 'Aprendiz', detail, life: severity === 'error' ? undefined : 6000 })

const ready = (async () => {
  const [words, nodes] = await Promise.all([ask(`texts?language=${encodeURIComponent(language())}`), ask('nodes'), import(api.apiURL('/aprendiz/panel.js'))])
  texts = words
  table = nodes.nodes
  schema = nodes.schema
})().catch(error => console.error('Aprendiz:', error))

// A run that is shown: one follower for each run, however many panels show it

const followed = new Map()

/** Show a run in a panel; `lost` is shown while the server does not answer, `gone` called where there is no such run any more. */
function follow(id, panel, lost, gone) {
  const known = followed.get(id) ?? { events: [], offset: 0, state: null, name: '', job: null, panels: new Map(), timer: null, busy: false }
  followed.set(id, known)
  known.panels.set(panel, { lost, gone })
  panel.clear()
  panel.texts = texts
  panel.fileUrl = path => api.apiURL(`/aprendiz/runs/${id}/file/${path.split('/').map(encodeURIComponent).join('/')}`)
  panel.take(known.events)
  dress(known, panel)
  if (!known.job) askJob(id, known)
  look(id)
  return () => { known.panels.delete(panel); if (!known.panels.size) { clearTimeout(known.timer); followed.delete(id) } }
}

function askJob(id, known) {
  ask(`runs/${id}/job`).then(told => { known.job = told.job; known.panels.forEach((_, one) => { one.job = told.job }) }).catch(() => {})
}

function dress(known, panel) {
  panel.name = known.name
  panel.job = known.job
  if (known.state) panel.state = known.state
}

async function look(id) {
  const known = followed.get(id)
  if (!known || known.busy) return
  clearTimeout(known.timer)
  known.busy = true
  try {
    const told = await ask(`runs/${id}/events?offset=${known.offset}&language=${encodeURIComponent(language())}`)
    if (known.began && told.began && told.began !== known.began) {   // deleted, and made anew under the same name
      Object.assign(known, { began: told.began, events: [], offset: 0, job: null })
      known.panels.forEach((_, panel) => panel.clear())
      askJob(id, known)
      setTimeout(() => look(id))
      return
    }
    known.began = told.began
    known.offset = told.offset
    known.events.push(...told.events)
    known.state = told.state
    known.name = told.name
    for (const panel of known.panels.keys()) { panel.take(told.events); dress(known, panel) }
    known.missing = false
  } catch (error) {
    if (error.gone) return [...known.panels.values()].forEach(one => one.gone())
    known.missing = true
  } finally { known.busy = false }
  for (const { lost } of known.panels.values()) { lost.textContent = say('lost'); lost.hidden = !known.missing }
  const waits = document.hidden || known.missing ? 5 * POLL : POLL
  if (followed.get(id) === known && (known.missing || ALIVE.includes(known.state) || known.state === null)) known.timer = setTimeout(() => look(id), waits)
}

async function tell(id, command, panel) {
  try {
    if (command === 'node') return await nodeFrom(id)
    await ask(`runs/${id}/tell`, { command })
    panel.passedOn(command)
    setTimeout(() => look(id), 200)
  } catch (error) { toast('error', error.message); look(id) }
}

function panelFor(id, commands, gone) {
  const panel = make('aprendiz-run'), lost = make('p', { hidden: true, role: 'status', style: 'margin:0;padding:8px 16px;color:var(--fg-color)' })
  panel.commands = commands
  panel.addEventListener('tell', event => tell(id, event.detail.command, panel))
  const leave = follow(id, panel, lost, gone)
  return { shown: make('div', {}, lost, panel), leave }
}

// Nodes

/** The id of a widget's input: what belongs to a choice is called `loss.huber_delta` where the host has dynamic inputs. */
const idOf = one => one.name.slice(one.name.lastIndexOf('.') + 1)

function widget(node, id) { return node.widgets?.find(one => idOf(one) === id) }

/** Show or hide a widget of this node, on the classic canvas (which must be told that it takes no room) and in Nodes 2.0; whether it was otherwise. */
function show(one, on) {
  if (!!one.hidden === !on) return false
  one.hidden = !on
  one.options ??= {}
  one.options.hidden = !on   // in place: some versions keep the very object elsewhere too
  if (one.element) one.element.hidden = !on
  if (on) {
    for (const name of ['computeSize', 'computeLayoutSize']) { if (one.aprendiz_own?.[name]) one[name] = one.aprendiz_own[name]; else delete one[name] }
    return true
  }
  one.aprendiz_own = Object.fromEntries(['computeSize', 'computeLayoutSize'].filter(name => Object.hasOwn(one, name)).map(name => [name, one[name]]))
  one.computeSize = () => [0, -4]
  if (one.computeLayoutSize) one.computeLayoutSize = () => ({ minHeight: 0, maxHeight: 0, minWidth: 0 })
  return true
}

/** Show what is to be seen of a node's widgets, and give it the height for them, `least` pixels at least. */
function fold(node, least = 0) {
  const known = table[node.comfyClass]
  if (!known) return
  const all = node.properties.aprendiz_all === true
  let other = false
  for (const { id, advanced, when, default: usual } of known) {
    const one = widget(node, id)
    if (!one) continue
    const sibling = when && widget(node, when[0])
    // A setting that was changed stays in sight when the rest is folded away.
    if (show(one, (all || !advanced || one.value !== usual) && (!sibling || when[1].includes(sibling.value)))) other = true
  }
  const button = node.aprendiz_button, words = say(all ? 'fold' : 'unfold')
  if (button && button.label !== words) {
    other = true
    button.label = words
    button.options.label = words
  }
  if (other) redraw(node)
  resize(node, [node.size[0], Math.max(least, node.computeSize()[1])])
  app.graph?.setDirtyCanvas?.(true, true)
}

function dressNode(node) {
  const known = table[node.comfyClass] ?? []
  if (known.some(one => one.advanced || one.when)) {
    const button = node.addWidget('button', NAMED_ABOVE ? '' : 'aprendiz_fold', null, () => { node.properties.aprendiz_all = !node.properties.aprendiz_all; fold(node) }, { serialize: false })
    button.serialize = false
    node.aprendiz_button = button
    for (const name of new Set(known.map(one => one.when?.[0]).filter(Boolean))) {
      const one = widget(node, name)
      if (!one) continue
      const before = one.callback
      one.callback = function (...given) { const told = before?.apply(this, given); fold(node); return told }
    }
  }
  named(node)
  if (TRAIN.test(node.comfyClass)) trainingNode(node)
  if (TELLS.includes(node.comfyClass)) tellingNode(node)
  fold(node)
  setTimeout(() => fold(node), 0)
}

/** Saved graphs hold widgets by position; ours by name too, so that a setting that came in between moves none of the others. */
function named(node) {
  const known = () => (node.widgets ?? []).filter(one => (table[node.comfyClass] ?? []).some(entry => entry.id === idOf(one)))
  const serialize = node.onSerialize, configure = node.onConfigure
  node.onSerialize = function (data) {
    serialize?.call(this, data)
    const { aprendiz_values, ...others } = data.properties ?? {}
    // A page that was never told of our settings knows no names: places alone are true then.
    data.properties = table[node.comfyClass] ? { ...others, aprendiz_schema: schema, aprendiz_values: Object.fromEntries(known().map(one => [idOf(one), one.value])) } : others
    if (isLent(node)) data.size = [...node.aprendiz_size.own]
  }
  node.onConfigure = function (data) {
    configure?.call(this, data)
    const values = data.properties?.aprendiz_values
    // In order: a choice stands before what belongs to it, and brings it along.
    if (values) for (const { id, default: usual } of table[node.comfyClass] ?? []) { const one = widget(node, id); if (one) one.value = id in values ? values[id] : usual }
    if (data.properties?.aprendiz_schema > schema && schema) toast('warn', say('newer'))
    if (TRAIN.test(node.comfyClass)) takeRun(node)
    setTimeout(() => fold(node, data.size?.[1]), 0)   // a person may have given it more room than it needs
  }
}

function trainingNode(node) {
  const every = wish('aprendiz.sampleEverySteps', 0), keep = wish('aprendiz.keepRunning', false)
  if (every && widget(node, 'sample_every_steps')) widget(node, 'sample_every_steps').value = every
  if (keep && widget(node, 'keep_running')) widget(node, 'keep_running').value = true
  // From the beginning on, without height: early versions of Nodes 2.0 show no widget that comes later.
  node.aprendiz_place = make('div', { style: 'overflow:auto;width:100%;height:100%;border-radius:6px' })
  const place = node.addDOMWidget('aprendiz_panel', 'aprendiz', node.aprendiz_place, { serialize: false, hideOnZoom: false, getMinHeight: () => height(node) })
  place.serialize = false
  const removed = node.onRemoved, added = node.onAdded, executed = node.onExecuted
  node.onRemoved = function () { removed?.call(this); clear(node) }
  node.onAdded = function (...given) { added?.apply(this, given); ready.then(() => takeRun(node)) }   // one that was taken out, and put back
  // The result names the run too: a page that missed its beginning shows it all the same.
  node.onExecuted = function (result) { executed?.call(this, result); const run = result?.aprendiz?.[0]; if (run && isOpen(run.graph)) ready.then(() => showRun(node, run.id)) }
}

const panelled = new Set()               // the nodes that show a run

/** Show the run that a node was saved with; not on a copy that stands beside the node itself. */
function takeRun(node) {
  const id = node.properties.aprendiz_run
  if (!id || !node.graph) return
  if ([...panelled].some(one => one !== node && one.graph === node.graph && one.properties.aprendiz_run === id)) delete node.properties.aprendiz_run
  else showRun(node, id)
}

/**
 * The run panel, on the node. `written`: whether the graph is saved with it; where a change was undone that is older than the run
 * it is not, as that would be a change of its own, and nothing before it could be undone any more.
 */
function showRun(node, id, written = true) {
  if (!node.graph || !customElements.get('aprendiz-run')) return
  if (written) node.properties.aprendiz_run = id
  if (node.aprendiz_shown === id) return look(id)
  clear(node)
  node.aprendiz_shown = id
  node.aprendiz_size = { own: [...node.size], lent: [...node.size] }
  panelled.add(node)
  resize(node, [Math.max(node.size[0], 420), node.computeSize()[1]])
  const { shown, leave } = panelFor(id, ['pause', 'resume', 'sample', 'save', 'stop', 'start'], () => takeOff(node))
  const grows = new ResizeObserver(() => grow(node, shown.offsetHeight))
  grows.observe(shown)
  node.aprendiz_leave = () => { grows.disconnect(); leave() }
  node.aprendiz_place.replaceChildren(shown)
  house(node)
}

/** Take the panel away and stop following its run. */
function clear(node) {
  node.aprendiz_leave?.()
  node.aprendiz_place.replaceChildren()
  node.aprendiz_frame?.remove()
  for (const name of ['leave', 'shown', 'height', 'size', 'frame']) delete node[`aprendiz_${name}`]
  panelled.delete(node)
  if (!panelled.size) housing.disconnect()
}

/** Take a panel off the node whose run is gone, or was never on this machine: a shared graph names it all the same. */
function takeOff(node) {
  forget(node.aprendiz_shown)
  clear(node)
  delete node.properties.aprendiz_run
  fold(node)
}

/** Whether a node has the size that its panel asked for: it is saved with its own, so that a panel that grows is no change to undo. */
const isLent = node => Boolean(node.aprendiz_size?.lent.every((side, i) => side === node.size[i]))

function resize(node, size) {
  const sizes = node.aprendiz_size
  if (sizes && !isLent(node)) sizes.own = [...node.size]   // a person gave it another
  node.setSize?.(size)
  if (sizes) sizes.lent = [...node.size]
}

const height = node => node.aprendiz_shown ? node.aprendiz_height ?? LOW : 0

/** Give the panel on a node the height that its curve and pictures want, up to a bound; it never shrinks, so that nothing jumps. */
function grow(node, wanted) {
  const high = Math.min(HIGH, Math.max(height(node), wanted))
  if (high === height(node)) return
  node.aprendiz_height = high
  resize(node, [node.size[0], Math.max(node.size[1], node.computeSize()[1])])
  app.graph?.setDirtyCanvas?.(true, true)
}

// The first Nodes 2.0 (front ends 1.27 to 1.35): they draw a node's widgets as they were when the node came, and up to 1.28 no
// elements of ours

const NAMED_ABOVE = /^1\.(2\d|3[0-4])\./.test(globalThis.__COMFYUI_FRONTEND_VERSION__ ?? '')   // a button's name stands above it, what its options call `label` on it

/** Whether a widget's `hidden` is heard of by the front end itself. */
function heard(one) {
  for (let at = one; at; at = Object.getPrototypeOf(at)) { const found = Object.getOwnPropertyDescriptor(at, 'hidden'); if (found) return Boolean(found.get) }
  return false
}

/** Whether a node is drawn by Nodes 2.0 that follow nothing of it: not even the list of its widgets. */
const unfollowed = node => globalThis.LiteGraph?.vueNodesMode === true && !Object.getOwnPropertyDescriptor(node, 'widgets')?.get

/** Have Nodes 2.0 draw the widgets of a node anew, where they do not hear of it themselves. */
async function redraw(node) {
  if (globalThis.LiteGraph?.vueNodesMode !== true || !node.graph || heard(node.aprendiz_button)) return
  if (unfollowed(node)) {   // 1.27 looks again only where there are more or fewer of them
    const last = node.widgets.pop()
    retell(node)
    await null
    node.widgets.push(last)
  }
  retell(node)
}

/** Tell the front end of a node as if it had just come, as it does itself where it replaces one; it wraps callbacks each time. */
function retell(node) {
  const before = node.widgets.map(one => one.callback)
  node.graph?.onNodeAdded?.(node)
  node.widgets.forEach((one, i) => { one.callback = before[i] })
}

/** Put the panel of a node into what Nodes 2.0 draw of it, where they give it no place of its own. */
function house(node) {
  if (!unfollowed(node)) return
  housing.observe(document.body, { childList: true, subtree: true })   // they make a node anew when it is unfolded, or seen from near
  const body = node.graph === app.canvas?.graph && document.querySelector(`[data-testid="node-body-${node.id}"]`)
  if (!body || body.contains(node.aprendiz_place)) return
  node.aprendiz_frame?.remove()
  node.aprendiz_frame = make('div', { style: `width:420px;max-height:${HIGH}px;overflow:auto;padding:0 16px;box-sizing:border-box;cursor:auto` }, node.aprendiz_place)
  // What is pressed here is no dragging of the node.
  for (const kind of ['pointerdown', 'pointermove', 'pointerup']) node.aprendiz_frame.addEventListener(kind, event => event.stopPropagation())
  body.append(node.aprendiz_frame)
}

const housing = new MutationObserver(() => panelled.forEach(house))

function tellingNode(node) {
  const executed = node.onExecuted
  node.onExecuted = function (result) {
    executed?.call(this, result)
    const text = result?.text
    if (!text) return
    if (!node.aprendiz_text) {
      node.aprendiz_text = make('pre', { style: 'margin:0;padding:8px;overflow:auto;width:100%;height:100%;font:11px/1.4 ui-monospace,monospace;white-space:pre-wrap;user-select:text;color:var(--fg-color);background:var(--comfy-input-bg);border-radius:6px' })
      const place = node.addDOMWidget('aprendiz_text', 'aprendiz', node.aprendiz_text, { serialize: false, hideOnZoom: false, getMinHeight: () => 120 })
      place.serialize = false
    }
    node.aprendiz_text.textContent = Array.isArray(text) ? text.join('\n') : String(text)
    node.setSize?.([Math.max(node.size[0], 360), Math.max(node.size[1], node.computeSize()[1])])
  }
}

/** The node of an id; one within subgraphs is called `2:1`, the node 1 of what is in node 2. */
function nodeById(id) {
  const find = (graph, part) => graph?.getNodeById?.(Number(part)) ?? graph?._nodes?.find(node => String(node.id) === part)
  const parts = String(id).split(':'), last = parts.pop()
  return find(parts.reduce((graph, part) => find(graph, part)?.subgraph, root()), last)
}
const root = () => app.rootGraph ?? app.graph

/** Whether a graph is the one in sight: another tab of the page may have queued it, and has nodes of the same ids. */
const isOpen = id => !isNamed(id) || !root()?.id || id === root().id
const isNamed = id => /[1-9a-f]/.test(id ?? '')   // a graph that was cleared has an id of noughts, as every other

// Which run belongs to which node, by the graph's id: a graph in another tab of the page, or one before a change that was undone, does
// not know. Kept for this browser tab, so that a reloaded page still knows.

const KEPT = 'aprendiz.runs', GRAPHS = 100
const belonging = (() => { try { return JSON.parse(sessionStorage.getItem(KEPT)) ?? {} } catch { return {} } })()

function keepBelonging() {
  for (const graph of Object.keys(belonging).slice(0, -GRAPHS)) delete belonging[graph]
  try { sessionStorage.setItem(KEPT, JSON.stringify(belonging)) } catch { /* storage is full or forbidden: kept until the page is reloaded */ }
}

/** `shown`: whether the node has shown it, and was saved with it. */
function remember(graph, node, id, shown) {
  const known = belonging[graph]?.[node]
  if (!isNamed(graph) || known?.id === id && known.shown >= shown) return
  belonging[graph] = { ...belonging[graph], [node]: { id, shown } }
  keepBelonging()
}

function forget(id) {
  for (const nodes of Object.values(belonging)) for (const node of Object.keys(nodes)) if (nodes[node].id === id) delete nodes[node]
  keepBelonging()
}

/** Show the runs that belong to nodes of the graph in sight. */
function showBelonging() {
  const graph = root()?.id
  for (const [at, run] of Object.entries(belonging[graph] ?? {})) {
    const node = nodeById(at)
    if (!node || !TRAIN.test(node.comfyClass)) continue
    showRun(node, run.id, !run.shown || node.properties.aprendiz_run === run.id)
    remember(graph, at, run.id, true)
  }
}

// Making nodes

function add(type, at, values = {}) {
  const node = globalThis.LiteGraph.createNode(type)
  if (!node) return null
  node.pos = at
  // Before it is added: early Nodes 2.0 keep the values that a node came with.
  for (const [name, value] of Object.entries(values)) { const one = widget(node, name); if (one && value !== undefined && value !== null) one.value = value }
  const graph = app.canvas?.graph ?? app.graph   // the one in sight: a subgraph may be open
  graph.add(node)
  return node
}

const join = (from, output, to, input) => from?.connect?.(from.outputs.findIndex(one => one.name === output), to, to.inputs.findIndex(one => one.name === input))

/** Base, dataset (with its options, where some were set) and training node, connected, at a place. */
function ready_graph(at, train) {
  const base = add('AprendizBase', at, train.base)
  const dataset = add('AprendizDatasetFolder', [at[0], at[1] + 220], train.dataset)
  const node = add(train.type, [at[0] + 460, at[1]], train.widgets)
  if (dataset && Object.keys(train.options ?? {}).length) join(add('AprendizDatasetOptions', [at[0] - 420, at[1] + 220], train.options), 'options', dataset, 'options')
  if (base && dataset && node) {
    join(base, 'base model', node, 'base')
    join(dataset, 'dataset', node, 'dataset')
    fold(node)
  }
  return node
}

async function nodeFrom(id) {
  const told = await ask(`runs/${id}/job`)
  const middle = app.canvas?.graph_mouse ?? [100, 100]
  ready_graph([middle[0], middle[1]], told)
}

// A folder of pictures that is dropped on the canvas becomes a graph that is ready to run

/** Pictures, captions and tables of a folder and of the folders in it, as [path within it, file]. */
async function filesOf(entry, path = '') {
  if (entry.isFile) return KNOWN.some(kind => kind.test(entry.name)) ? [[path, await new Promise((done, fail) => entry.file(done, fail))]] : []
  const reader = entry.createReader(), found = []
  for (;;) {
    const part = await new Promise((done, fail) => reader.readEntries(done, fail))
    if (!part.length) break
    found.push(...part)
  }
  return (await Promise.all(found.map(one => filesOf(one, one.isFile ? path : `${path}/${one.name}`)))).flat()
}

/** A short name for what is in a folder: another content is uploaded into another place. */
function mark(files) {
  let sum = 0x811c9dc5
  for (const [path, file] of files) for (const sign of `${path}/${file.name} ${file.size} ${file.lastModified};`) sum = Math.imul(sum ^ sign.codePointAt(0), 0x01000193) >>> 0
  return sum.toString(16).padStart(8, '0')
}

async function takeFolder(entry, at) {
  const files = (await filesOf(entry)).sort(([a, one], [b, other]) => `${a}/${one.name}`.localeCompare(`${b}/${other.name}`))
  if (!files.some(([, file]) => PICTURE.test(file.name))) return toast('warn', say('drop_none', { folder: entry.name }))
  const plain = entry.name.normalize('NFKD').replace(/\p{M}+/gu, '').replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[^A-Za-z0-9]+/, '').slice(0, 80)
  const folder = `${plain || 'pictures'}-${mark(files)}`
  toast('info', say('drop_upload', { count: files.length, folder: entry.name }))
  for (const [path, file] of files) {
    const form = new FormData()
    form.append('image', file, file.name)
    form.append('subfolder', folder + path)
    form.append('overwrite', 'true')
    const answer = await api.fetchApi('/upload/image', { method: 'POST', body: form })
    if (!answer.ok) throw new Error(`${file.name}: ${answer.statusText}`)
  }
  ready_graph(at, await ask('ready', { folder }))
}

function onDrop(event) {
  const entries = [...(event.dataTransfer?.items ?? [])].map(item => item.webkitGetAsEntry?.()).filter(Boolean)
  if (entries.length !== 1 || !entries[0].isDirectory) return
  event.preventDefault()
  event.stopPropagation()
  const at = app.canvas?.convertEventToCanvasOffset?.(event) ?? [100, 100]
  takeFolder(entries[0], at).catch(error => toast('error', error.message))
}

// Sidebar

let sidebar = null

function list(runs) {
  if (!runs.length) return [make('p', { textContent: say('no_runs'), style: 'padding:16px;margin:0' })]
  return runs.map(run => {
    const button = make('button', { type: 'button', className: 'aprendiz-row' },
      run.picture ? make('img', { src: api.apiURL(`/aprendiz/runs/${run.id}/file/${run.picture}`), alt: '', loading: 'lazy' }) : make('span', { className: 'aprendiz-blank' }),
      make('span', {}, make('b', { textContent: run.name }), make('br'),
        make('small', { textContent: [say(run.state), run.steps ? say('step', { step: run.step, steps: run.steps }) : '', run.method, run.base].filter(Boolean).join(' · ') })))
    button.dataset.run = run.id
    button.addEventListener('click', () => sidebarShow(run.id))
    return button
  })
}

/** The list of runs, asked for again while one lives; `focused`: the run whose line is to have the focus. */
async function sidebarList(focused = null) {
  const mine = sidebar
  if (!mine) return
  clearTimeout(mine.timer)
  mine.leave?.()
  mine.leave = null
  mine.shown = null
  const turn = mine.turn = (mine.turn ?? 0) + 1
  let rows, lives = true
  try {
    const runs = await ask('runs')
    rows = list(runs)
    lives = runs.some(run => ALIVE.includes(run.state))
  } catch { rows = [make('p', { textContent: say('lost'), role: 'status', style: 'padding:16px;margin:0' })] }
  if (sidebar !== mine || mine.shown || mine.turn !== turn) return   // closed, a run opened, or asked for again meanwhile
  const before = focused ?? (mine.body.contains(document.activeElement) ? document.activeElement.dataset.run : null)
  mine.body.replaceChildren(...rows)
  if (before) mine.body.querySelector(`[data-run="${before}"]`)?.focus()
  if (lives) mine.timer = setTimeout(sidebarList, LIST)
}

function sidebarShow(id) {
  clearTimeout(sidebar.timer)
  sidebar.leave?.()
  const { shown, leave } = panelFor(id, ['pause', 'resume', 'sample', 'save', 'stop', 'start', 'open', 'node'], () => { toast('warn', say('gone')); sidebarList() })
  sidebar.leave = leave
  sidebar.shown = id
  const back = make('button', { type: 'button', className: 'aprendiz-back', textContent: `‹ ${say('back')}` })
  back.addEventListener('click', () => sidebarList(id))
  sidebar.body.replaceChildren(back, shown)
  back.focus()   // the line that had it is gone
  ask(`runs/${id}/job?language=${encodeURIComponent(language())}`).then(told => { if (sidebar?.shown === id) sidebar.body.append(settingsOf(told.settings)) }).catch(() => {})
}

/** What was set for a run, beside what is usual. */
function settingsOf(rows) {
  const cells = rows.flatMap(([name, value]) => [make('dt', { textContent: name }), make('dd', { textContent: value })])
  return make('details', { className: 'aprendiz-set' }, make('summary', { textContent: say('settings') }), make('dl', {}, ...cells))
}

const SIDEBAR_STYLE = `
.aprendiz-side { height: 100%; overflow: auto; color: var(--fg-color); font: 13px/1.45 Inter, system-ui, sans-serif }
.aprendiz-side h2 { font-size: 15px; font-weight: 600; margin: 0; padding: 16px 16px 8px }
.aprendiz-row { display: flex; gap: 12px; align-items: center; width: 100%; padding: 8px 16px; border: 0; background: none; color: inherit; font: inherit; text-align: start; cursor: pointer }
.aprendiz-row:hover { background: color-mix(in srgb, currentColor 8%, transparent) } .aprendiz-row small { opacity: .75; font-variant-numeric: tabular-nums }
.aprendiz-row img, .aprendiz-blank { width: 40px; height: 40px; border-radius: 4px; object-fit: cover; flex: none; background: color-mix(in srgb, currentColor 10%, transparent) }
.aprendiz-row:focus-visible, .aprendiz-back:focus-visible { outline: 2px solid var(--p-primary-color, currentColor); outline-offset: -2px }
.aprendiz-set { padding: 8px 16px 16px } .aprendiz-set summary { cursor: pointer; min-height: 32px; line-height: 32px }
.aprendiz-set dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; font-size: 12px } .aprendiz-set dt { opacity: .75 } .aprendiz-set dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line }
.aprendiz-back { margin: 8px 16px 0; background: none; border: 0; color: inherit; font: inherit; cursor: pointer; padding: 4px 0; min-height: 32px }`

function closeSidebar() {
  clearTimeout(sidebar?.timer)
  sidebar?.leave?.()
  sidebar = null
}

function sidebarRender(element) {
  closeSidebar()
  const body = make('div')
  element.replaceChildren(make('div', { className: 'aprendiz-side' }, make('style', { textContent: SIDEBAR_STYLE }), make('h2', { textContent: say('runs') }), body))
  sidebar = { body, leave: null, shown: null }
  ready.then(() => sidebarList())
}

// What the server tells

function onRun({ detail }) {
  // Every page is told; in another page's graph this id may be any node.
  if (detail.node != null && detail.client === api.clientId) {
    const node = isOpen(detail.graph) && nodeById(detail.node), shown = Boolean(node && TRAIN.test(node.comfyClass))
    if (shown) showRun(node, detail.id)
    remember(detail.graph, detail.node, detail.id, shown)
  }
  if (sidebar && !sidebar.shown) sidebarList()
}

/** A result is told to the page that queued it alone; its run may belong to a graph in another tab. */
function onExecuted({ detail }) {
  const run = detail.output?.aprendiz?.[0]
  if (run) remember(run.graph, detail.display_node ?? detail.node, run.id, isOpen(run.graph))
}

function onEnd({ detail }) {
  look(detail.id)
  if (sidebar && !sidebar.shown) sidebarList()
  if (detail.state === 'finished') app.refreshComboInNodes?.()
  if (!wish('aprendiz.toasts', true)) return
  const told = { finished: ['success', 'toast_finished'], stopped: ['info', 'toast_stopped'] }[detail.state] ?? ['error', 'toast_failed']
  toast(told[0], say(told[1], { name: detail.name }))
}

function onReconnected() {
  for (const id of followed.keys()) look(id)
  if (sidebar && !sidebar.shown) sidebarList()
}

const openRuns = () => app.extensionManager?.command?.execute?.('Workspace.ToggleSidebarTab.aprendiz')

async function stopAll() {
  try {
    for (const run of await ask('runs')) if (ALIVE.includes(run.state)) await tell(run.id, 'stop')
  } catch { toast('error', say('lost')) }
}

app.registerExtension({
  name: 'aprendiz',
  settings: [
    { id: 'aprendiz.outputFolder', category: ['Aprendiz', 'Training', 'outputFolder'], name: "Folder in which runs are kept, by its full path (empty: ComfyUI's output folder)", type: 'text', defaultValue: '' },
    { id: 'aprendiz.sampleEverySteps', category: ['Aprendiz', 'Training', 'sampleEverySteps'], name: 'Draw sample pictures every so many steps in new training nodes (0: never)', type: 'number', defaultValue: 0 },
    { id: 'aprendiz.keepRunning', category: ['Aprendiz', 'Training', 'keepRunning'], name: 'New training nodes go on when ComfyUI closes', type: 'boolean', defaultValue: false },
    { id: 'aprendiz.toasts', category: ['Aprendiz', 'Page', 'toasts'], name: 'Tell when a run ends', type: 'boolean', defaultValue: true },
  ],
  commands: [
    { id: 'aprendiz.showRuns', label: 'Show the runs', icon: 'pi pi-graduation-cap', function: openRuns },
    { id: 'aprendiz.stop', label: 'Stop the run that is training', icon: 'pi pi-stop', function: stopAll },
  ],
  keybindings: [{ combo: { key: 'a', alt: true, shift: true }, commandId: 'aprendiz.showRuns' }],
  menuCommands: [{ path: ['Extensions', 'Aprendiz'], commands: ['aprendiz.showRuns', 'aprendiz.stop'] }],
  async setup() {
    await ready
    api.addEventListener('aprendiz.run', onRun)
    api.addEventListener('aprendiz.end', onEnd)
    api.addEventListener('executed', onExecuted)
    api.addEventListener('reconnected', onReconnected)
    document.addEventListener('drop', onDrop, true)
    app.extensionManager?.registerSidebarTab?.({ id: 'aprendiz', icon: 'pi pi-graduation-cap', title: 'Aprendiz', tooltip: 'Aprendiz', type: 'custom',
      render: sidebarRender, destroy: closeSidebar })
  },
  afterConfigureGraph: showBelonging,
  nodeCreated(node) {
    // At once, not after a promise: a saved graph is put into its nodes right after they are made.
    if (node.comfyClass?.startsWith('Aprendiz')) dressNode(node)
  },
})
