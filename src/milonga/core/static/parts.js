"use strict";
// Building blocks of all pages. Everything is inserted as text, never as markup.

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

const FAILURES = 4; // answers "internal error" in a row, after which a request is given up
let away = false; // whether the page says that the server does not answer

// Repeats a request until the server answers, so that no answer is lost while the server restarts. What the server
// refuses is `refused`, with the `field` of the form that is wrong where it is one.
async function ask(method, path, body) {
  for (let pause = 500, failures = 0; ; pause = Math.min(pause * 1.6, 8000)) {
    try {
      const options = body === undefined ? { method } : {
        method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      };
      const answer = await fetch(here + path, body instanceof Blob ? { method, body } : options);
      if (answer.ok) {
        if (away) notice("");
        away = false;
        return await answer.json();
      }
      failures += answer.status === 503 ? 0 : 1;
      if (answer.status < 500 || failures >= FAILURES) {
        const body = await answer.json().catch(() => ({}));
        return { refused: typeof body.error === "string" ? body.error : `The server refused this (${answer.status}).`, field: body.field };
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch raises a TypeError where no server answers
    }
    away = true;
    notice(method === "GET" ? "The server does not answer. Retrying …" : "Not saved yet. Retrying …");
    await wait(pause);
  }
}

function show(...children) {
  const stage = byId("stage");
  notice("");
  stage.replaceChildren(...children);
  scrollTo(0, 0);
  stage.focus({ preventScroll: true });
}
