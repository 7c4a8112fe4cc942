"use strict";
// The page of one gateway. Everything that comes from the mesh is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const maxGroups = 60, maxEvents = 100, tokenKey = "gatemesh.token";

let token = sessionStorage.getItem(tokenKey) || "";
let socket = null, lastSeq = 0, started = "", pause = 1000, retry = 0, poll = 0, soon = 0;
let asked = ""; // id of the question in the ask box
const groups = new Map(); // correlation id -> group

// el makes an element: el("li", "class", "text" or children ...).
function el(tag, cls, ...parts) {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  e.append(...parts.filter((p) => p !== "" && p != null));
  return e;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function state(text, cls) {
  $("state").textContent = text;
  $("state").className = "pill " + cls;
}

class Refused extends Error {
  constructor(status, error) {
    super(error.message || "HTTP " + status);
    this.status = status;
    this.code = error.code;
  }
}

async function api(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = "Bearer " + utf8(token);
  const r = await fetch(path, { ...options, headers, cache: "no-store" });
  const body = await r.json().catch(() => ({}));
  if (!r.ok) throw new Refused(r.status, body.error || {});
  return body;
}

// --- connecting ---

async function connect() {
  clearTimeout(retry);
  try {
    const s = await api("/v1/status");
    show(s);
    await refresh();
    listen();
  } catch (e) {
    if (e instanceof Refused && e.status === 401) return login(token ? e.message : "");
    if (e instanceof Refused) notice(e.message);
    state("unreachable", "bad");
    again();
  }
}

function show(s) {
  $("login").hidden = true;
  $("main").hidden = false;
  $("forget").hidden = !token;
  $("name").textContent = s.gateway;
  document.title = s.gateway + " · gatemesh";
  $("facts").textContent = [s.version, s.store].filter(Boolean).join(" · ");
  state(s.ready ? "ready" : "not ready", s.ready ? "good" : "bad");
  notice(s.ready ? "" : s.reason || "");
  if (s.started !== started) lastSeq = 0; // another run counts anew
  started = s.started;
}

function login(why) {
  hangUp();
  sessionStorage.removeItem(tokenKey);
  token = "";
  $("main").hidden = true;
  $("forget").hidden = true;
  $("login").hidden = false;
  state("token wanted", "warn");
  notice(why);
  $("token").value = "";
  $("token").focus();
}

function hangUp() {
  clearTimeout(retry);
  clearTimeout(poll);
  clearTimeout(soon);
  soon = 0;
  if (socket) {
    socket.onclose = null;
    socket.close();
    socket = null;
  }
}

function again() {
  $("live").textContent = "· connecting again";
  clearTimeout(retry);
  retry = setTimeout(connect, pause);
  pause = Math.min(pause * 2, 15000);
}

function listen() {
  if (socket) return;
  const url = new URL("/v1/events?replay=1000", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const protocols = ["gatemesh.v1"];
  if (token) protocols.push("gatemesh.token." + base64url(token));
  socket = new WebSocket(url, protocols);
  socket.onopen = () => {
    pause = 1000;
    $("live").textContent = "· live";
  };
  socket.onmessage = (m) => event(JSON.parse(m.data));
  socket.onclose = () => {
    socket = null;
    again();
  };
}

// utf8 is s with one character for each byte: a header carries nothing else.
const utf8 = (s) => String.fromCharCode(...new TextEncoder().encode(s));

function base64url(s) {
  return btoa(utf8(s)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// --- gateways, agents, inboxes ---

async function refresh() {
  clearTimeout(poll);
  clearTimeout(soon);
  soon = 0;
  poll = setTimeout(() => (document.hidden ? void (poll = 0) : update()), 10000);
  try {
    const [g, a, i, c] = await Promise.all([api("/v1/gateways"), api("/v1/agents"), api("/v1/inboxes"), api("/v1/channels")]);
    mesh(g.gateways, a.agents);
    agentChoice(a.agents.filter((x) => !(x.capabilities || []).includes("channel.post"))); // an account of a chat answers nobody
    inboxes(i.inboxes, new Set(g.gateways.map((x) => x.gateway)));
    accounts(c.channels, new Map(g.gateways.map((x) => [x.gateway, x.url])));
  } catch (e) {
    if (e instanceof Refused && e.status === 401) throw e;
    if (e instanceof Refused) notice(e.message); // the lists stay as they were
    else throw e;
  }
}

// update asks again for what no event tells.
async function update() {
  try {
    show(await api("/v1/status"));
    await refresh();
  } catch (e) {
    if (e instanceof Refused && e.status === 401) login(e.message);
    else if (!(e instanceof Refused)) state("unreachable", "bad");
  }
}

function refreshSoon() {
  if (!soon) soon = setTimeout(update, 400);
}

const statusClass = { healthy: "good", active: "good", draining: "warn", unreachable: "bad" };

function mesh(gateways, agents) {
  const items = gateways.map((g) => node(g, agents.filter((a) => a.gateway === g.gateway)));
  const lost = agents.filter((a) => !gateways.some((g) => g.gateway === a.gateway));
  if (lost.length) items.push(node({ gateway: "no gateway", status: "unreachable" }, lost));
  if (!items.length) items.push(el("li", "dim", "No gateway is known yet."));
  $("mesh").replaceChildren(...items);
}

function node(g, agents) {
  const list = el("ul", "");
  for (const a of agents) {
    list.append(el("li", "", el("b", "", a.name || a.agent), " ", pill(a.status),
      el("span", "dim", [a.agent !== a.name && a.name ? a.agent : "", (a.capabilities || []).join(", "), a.description].filter(Boolean).join(" · "))));
  }
  return el("li", "", el("b", "", g.gateway), " ", pill(g.status), el("span", "dim", [g.url, g.version].filter(Boolean).join(" · ")), list);
}

function pill(status) {
  return el("span", "pill " + (statusClass[status] || ""), status || "unknown");
}

function agentChoice(agents) {
  const select = $("to"), chosen = select.value;
  select.replaceChildren(...agents.map((a) => {
    const o = el("option", "", (a.name || a.agent) + (a.status === "active" ? "" : " (" + a.status + ")"));
    o.value = a.agent;
    return o;
  }));
  if (agents.some((a) => a.agent === chosen)) select.value = chosen;
  else if (agents.some((a) => a.agent === "jerry")) select.value = "jerry";
}

// inboxes shows the agents'; a gateway's own, which takes answers, only when something lies in it.
function inboxes(list, gateways) {
  const shown = list.filter((i) => !gateways.has(i.agent) || i.waiting || i.pending || i.dead_letters);
  $("inboxes").replaceChildren(...shown.map((i) => el("tr", "",
    el("td", "", i.agent, el("span", "dim " + (i.owner ? "" : "bad"), i.owner ? "taken by " + i.owner : "nobody takes it")),
    el("td", "num" + (i.waiting ? " warn" : ""), String(i.waiting)),
    el("td", "num", String(i.pending)),
    el("td", "num" + (i.dead_letters ? " bad" : ""), String(i.dead_letters)))));
}

// --- chat accounts ---

const accountClass = { connected: "good", connecting: "warn", reconnecting: "warn", pairing: "warn", "logged-out": "bad", stopped: "bad" };
const when = (t) => (t ? new Date(t).toLocaleTimeString() : "-");

function accounts(list, urls) {
  $("accounts-card").hidden = !list.length;
  $("accounts").replaceChildren(...list.map((a) => {
    const alarm = a.foreign ? "Somebody else uses this account: " + a.foreign : a.detail;
    return el("tr", "",
      el("td", "", a.channel ? a.channel + "/" + a.account : a.inbox, a.self ? el("span", "dim", a.self) : ""),
      el("td", "", el("span", "pill " + (a.foreign ? "bad" : accountClass[a.state] || ""), a.state), alarm ? el("span", a.foreign ? "bad" : "dim", alarm) : ""),
      el("td", "", a.gateway || "nobody"),
      el("td", "", when(a.last_event_at)), el("td", "", when(a.last_post_at)),
      el("td", "num" + (a.unknown ? " bad" : ""), String(a.unknown || 0)),
      el("td", "", linker(a, urls.get(a.gateway))));
  }));
}

// linker is how to link an account that waits for a person: here, or on the page of the gateway that has it, because the code is nowhere else.
function linker(a, url) {
  if (a.state !== "pairing" && a.state !== "logged-out" || a.channel !== "whatsapp") return "";
  if (a.gateway === $("name").textContent) {
    const b = el("button", "quiet", "Link");
    b.type = "button";
    b.addEventListener("click", () => link(a));
    return b;
  }
  if (!url || !/^https?:$/.test(new URL(url).protocol)) return "";
  const there = el("a", "", "Link at " + a.gateway);
  there.href = url;
  return there;
}

let linking = 0;

async function link(a) {
  const turn = ++linking;
  let shown = "";
  $("code").hidden = true;
  $("pairing").hidden = false;
  $("pairing-text").textContent = "Waiting for a code from WhatsApp";
  while (turn === linking) {
    let p;
    try {
      p = await api("/v1/channels/" + encodeURIComponent(a.inbox) + "/pair", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ shown, image: true }),
      });
    } catch (err) {
      if (turn !== linking) return;
      $("code").hidden = true;
      $("pairing-text").textContent = err instanceof Refused ? err.message : "The gateway cannot be reached.";
      return;
    }
    if (turn !== linking) return;
    if (p.linked) {
      $("code").hidden = true;
      $("pairing-text").textContent = "Linked" + (p.self ? " as " + p.self : "") + ".";
      return update();
    }
    if (p.code && p.code.code !== shown) {
      shown = p.code.code;
      $("code").src = p.image;
      $("code").hidden = false;
      $("pairing-text").textContent = "On the phone: WhatsApp, Settings, Linked devices, Link a device. Scan this before " + new Date(p.code.expires).toLocaleTimeString() + "; another one follows.";
    }
  }
}

function unlinking() {
  linking++;
  $("pairing").hidden = true;
  $("code").removeAttribute("src");
}

// --- the timeline ---

const eventClass = { acked: "good", replied: "good", failed: "warn", retry: "warn", duplicate: "warn",
  channel: "good", unanswered: "warn", "foreign-connection": "bad",
  "dead-letter": "bad", refused: "bad", gap: "bad", deposed: "bad", "store-down": "bad", "store-up": "good" };
const meshEvents = new Set(["channel", "foreign-connection", "owned", "released", "deposed", "store-down", "store-up"]);

function event(ev) {
  if (ev.seq <= lastSeq) return;
  lastSeq = ev.seq;
  if (meshEvents.has(ev.event) || ev.event === "dead-letter" || ev.event === "acked") refreshSoon();
  if (ev.message_id && ev.message_id === asked) progress(ev);
  const key = ev.correlation_id || ev.message_id || "gateway";
  let g = groups.get(key);
  if (!g) g = group(key, ev);
  const at = Date.parse(ev.at);
  g.list.append(el("li", "",
    el("span", "num mono", g.start ? "+" + (at - g.start) + " ms" : new Date(at).toLocaleTimeString()),
    el("span", eventClass[ev.event] || "", ev.event),
    el("span", "rest", describe(ev))));
  while (g.list.children.length > maxEvents) g.list.firstChild.remove();
  if (ev.event === "replied" && ev.message_id === key) finish(g, "answered after " + Math.round(ev.ms) + " ms", "good");
  else if (ev.event === "dead-letter" || ev.state === "dead-letter") finish(g, "given up: " + (ev.class || ""), "bad");
  else if (ev.event === "acked" && ev.message_id === key && !g.end.textContent) finish(g, "acked", "good");
}

function group(key, ev) {
  const own = key === "gateway";
  const title = own ? "This gateway" : [short(ev.from), "→", ev.to].join(" ") + (ev.capability ? " [" + ev.capability + "]" : "");
  const g = { start: own ? 0 : Date.parse(ev.at), list: el("ol", "events"), end: el("span", "end", "") };
  g.box = el("details", "", el("summary", "", title, " ", el("span", "dim mono", own ? "" : "…" + key.slice(-8)), " ", g.end), g.list);
  g.box.open = !own && groups.size < 4;
  groups.set(key, g);
  $("timeline").prepend(g.box);
  $("quiet").hidden = true;
  if (groups.size > maxGroups) {
    const [oldest, old] = groups.entries().next().value;
    old.box.remove();
    groups.delete(oldest);
  }
  return g;
}

function finish(g, text, cls) {
  g.end.textContent = "· " + text;
  g.end.className = "end " + cls;
}

const short = (from) => (from || "").split("@")[0];

function describe(ev) {
  const parts = [];
  if (ev.from || ev.to) parts.push([short(ev.from), ev.to].filter(Boolean).join(" → "));
  if (ev.event === "receipt") parts.push(ev.state + " by " + ev.by);
  if (ev.in_reply_to) parts.push("answers …" + ev.in_reply_to.slice(-8));
  if (ev.attempt > 1) parts.push("attempt " + ev.attempt);
  if (ev.class) parts.push(ev.class);
  if (ev.reason) parts.push(ev.reason);
  if (ev.text) parts.push(ev.text.length > 300 ? ev.text.slice(0, 300) + "…" : ev.text);
  return parts.join(" · ");
}

// --- asking ---

function uuid() {
  const b = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is not there without HTTPS
  b[6] = (b[6] & 15) | 64;
  b[8] = (b[8] & 63) | 128;
  const h = Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
  return [h.slice(0, 8), h.slice(8, 12), h.slice(12, 16), h.slice(16, 20), h.slice(20)].join("-");
}

function fact(name) {
  for (const li of $("steps").children) if (li.dataset.fact === name) li.classList.add("on");
}

// progress lights a fact as soon as its event is seen.
function progress(ev) {
  if (ev.event === "queued") fact("accepted");
  if (ev.event === "delivered" || ev.state === "delivered") fact("delivered");
  if (ev.event === "acked" || ev.state === "acked") fact("delivered"), fact("acked");
  if (ev.event === "replied") fact("replied");
}

async function ask(e) {
  e.preventDefault();
  const id = (asked = uuid());
  for (const li of $("steps").children) li.classList.remove("on");
  $("text").textContent = "";
  $("text").className = "";
  $("answer").hidden = false;
  $("send").disabled = true;
  try {
    const st = await api("/v1/messages", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ id, to: $("to").value, text: $("question").value, wait: "replied", timeout: "60s" }),
    });
    if (id !== asked) return;
    for (const name of ["accepted", "delivered", "acked", "replied"]) if (st.facts[name]) fact(name);
    if (st.facts.replied) $("text").textContent = st.text || "";
    else if (st.facts.dead) answerBad("Given up (" + st.facts.class + "): " + st.facts.reason);
    else answerBad("No answer within a minute. It may still come: gatemesh message show " + id);
  } catch (err) {
    if (err instanceof Refused && err.status === 401) return login(err.message);
    if (id === asked) answerBad(err instanceof Refused ? err.message : "The gateway cannot be reached.");
  } finally {
    $("send").disabled = false;
  }
}

function answerBad(text) {
  $("text").textContent = text;
  $("text").className = "warn";
}

// --- wiring ---

$("ask").addEventListener("submit", ask);
$("question").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
    e.preventDefault();
    if (!$("send").disabled) $("ask").requestSubmit();
  }
});
$("login").addEventListener("submit", (e) => {
  e.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem(tokenKey, token);
  connect();
});
$("pairing-stop").addEventListener("click", unlinking);
$("forget").addEventListener("click", () => login(""));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !poll && !$("main").hidden) update();
});
connect();
