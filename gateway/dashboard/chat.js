"use strict";
// The chat: one conversation, whose id is the fragment of the address. What the store has is shown once, by its number; what was typed
// and is not there yet is sent again after each reconnect, under the same id.

const tokenKey = "gatemesh.token";
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem(tokenKey) || "";
let socket, pause = 250, last = 0, stopped = false;
const waiting = new Map(); // id -> {text, item}

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

// Not crypto.randomUUID: a page that came by plain HTTP has none.
function newID() {
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 15) | 64;
  b[8] = (b[8] & 63) | 128;
  const hex = Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

let conversation = location.hash.slice(1);
if (!uuid.test(conversation)) {
  conversation = newID();
  history.replaceState(null, "", "#" + conversation);
}
addEventListener("hashchange", () => location.reload());

function base64url(text) {
  const bytes = new TextEncoder().encode(text);
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function state(text, kind) {
  $("state").textContent = text;
  $("state").className = "pill " + (kind || "");
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function item(id, who, text) {
  const li = document.createElement("li");
  li.dataset.id = id;
  li.dataset.who = who;
  const name = document.createElement("strong");
  name.textContent = who === "agent" ? "Agent: " : "You: ";
  const body = document.createElement("span");
  body.textContent = text;
  li.append(name, body);
  $("log").append(li);
  li.scrollIntoView({ block: "end" });
  return li;
}

function show(entry) {
  if (entry.seq <= last) return;
  last = entry.seq;
  const mine = waiting.get(entry.id);
  if (mine) {
    waiting.delete(entry.id);
    mine.item.remove(); // it stands at its place in the order of the store
  }
  item(entry.id, entry.who, entry.text).dataset.seq = entry.seq;
}

function transmit(id) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ id, text: waiting.get(id).text }));
}

function connect() {
  if (stopped) return;
  const url = new URL("/v1/webchat", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  url.searchParams.set("conversation", conversation);
  url.searchParams.set("after", String(last));
  const protocols = ["gatemesh.v1"];
  if (token) protocols.push("gatemesh.token." + base64url(token));
  const mine = new WebSocket(url, protocols);
  let opened = false;
  socket = mine;
  mine.onopen = () => {
    opened = true;
    state("connected", "good");
    notice("");
    for (const id of waiting.keys()) transmit(id);
  };
  mine.onmessage = (m) => {
    const f = JSON.parse(m.data);
    if (f.entry) show(f.entry);
    if (f.gap) notice("Older messages are gone: this conversation is longer than what is kept.");
    if (f.refused) {
      notice(f.reason);
      if (f.final && waiting.has(f.refused)) {
        waiting.get(f.refused).item.remove();
        waiting.delete(f.refused);
      } // else the gateway closes, and all of what waits is said again, in order
    }
  };
  mine.onclose = (e) => {
    if (socket !== mine) return;
    if (opened && e.code !== 1013) pause = 250; // 1013: the gateway cannot take anything in now
    state("connecting", "warn");
    if (!opened) check();
    setTimeout(connect, pause);
    pause = Math.min(pause * 2, 5000);
  };
}

// check finds out why a connection did not open: a WebSocket does not say.
async function check() {
  try {
    const r = await fetch("/v1/status", token ? { headers: { Authorization: "Bearer " + token } } : {});
    if (r.status === 401 || r.status === 403) {
      stopped = true;
      state("token wanted", "warn");
      $("login").hidden = false;
    }
  } catch { /* not reachable: go on trying */ }
}

$("login").addEventListener("submit", (e) => {
  e.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem(tokenKey, token);
  $("login").hidden = true;
  stopped = false;
  connect();
});

$("say").addEventListener("submit", (e) => {
  e.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  const id = newID();
  const li = item(id, "user", text);
  li.className = "dim";
  waiting.set(id, { text, item: li });
  transmit(id);
});

connect();
