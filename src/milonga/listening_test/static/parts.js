"use strict";
// What all pages are built from. Everything that is shown goes in as text, never as markup.

// make("button.big", {type: "button", onclick: f}, "Go") → <button class="big" type="button">Go</button>
function make(kind, properties = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

const byId = (name) => document.getElementById(name);
const here = location.pathname.replace(/\/+$/, "");
const notice = (text) => { byId("notice").textContent = text; };
const wait = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });

// Asks the server until it answers: what a rater gave is not lost to a server that is starting again.
async function ask(method, path, body) {
  for (let pause = 500; ; pause = Math.min(pause * 1.6, 8000)) {
    try {
      const options = body === undefined ? { method } : {
        method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      };
      const answer = await fetch(here + path, options);
      if (answer.ok) {
        notice("");
        return await answer.json();
      }
      if (answer.status < 500) {
        const told = await answer.json().catch(() => ({}));
        return { refused: typeof told.error === "string" ? told.error : `The server refused this (${answer.status}).` };
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // a TypeError is how fetch says that nobody answered
    }
    notice(method === "GET" ? "The server does not answer; trying again …" : "Not saved yet; trying again …");
    await wait(pause);
  }
}

function show(...children) {
  const stage = byId("stage");
  stage.replaceChildren(...children);
  scrollTo(0, 0);
  stage.focus({ preventScroll: true });
}

let sounding = null; // stops the clip that sounds

// A play button with its audio; `heard` is called whenever the clip has been played to its end.
function player(url, label, heard = () => {}) {
  const audio = make("audio", { preload: "auto", src: url });
  const line = make("span.line");
  const button = make("button.play", { type: "button", "aria-pressed": "false" },
    make("span.icon", { "aria-hidden": "true" }), make("span.label", {}, label), make("span.track", {}, line));
  const stop = () => {
    audio.pause();
    audio.currentTime = 0;
    button.classList.remove("playing");
    button.setAttribute("aria-pressed", "false");
    line.style.width = "0";
    if (sounding === stop) sounding = null;
  };
  const follow = () => {
    if (sounding !== stop) return;
    line.style.width = `${(100 * audio.currentTime) / (audio.duration || 1)}%`;
    requestAnimationFrame(follow);
  };
  const play = () => {
    if (sounding) sounding();
    sounding = stop;
    button.classList.add("playing");
    button.setAttribute("aria-pressed", "true");
    audio.play().then(() => notice("")).catch((error) => {
      if (error.name === "AbortError") return; // stopped before it began
      stop();
      audio.load(); // the server may be back by then
      notice("This clip could not be played; press play to try again.");
    });
    follow();
  };
  const toggle = () => (sounding === stop ? stop() : play());
  button.addEventListener("click", toggle);
  audio.addEventListener("ended", () => { stop(); button.classList.add("heard"); heard(); });
  return { element: make("div.player", {}, button, audio), toggle };
}
