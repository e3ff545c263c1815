"use strict";
// The player of all pages: waveform and mel picture, seek, pause, a region that can be looped, time and level. Sounds are
// decoded once and played by Web Audio, so a loop has no gap, and a switch between sounds keeps the position.

const FADE = 0.008; // seconds of a crossfade from one sound to another
const CELL = 0.05; // seconds of a part that counts as played
const TAIL = 2 * CELL; // seconds before the end from which a sound is started over: by then the one before may count as heard
const SHORTEST = 0.05; // seconds of a region
const DECODED = 16; // sounds that are held in memory
const WORDS = { // of a player, where a page has no others
  play: "Play", pause: "Pause", loop: "Loop", position: "Position in", place: "{place} of {seconds} seconds",
  region: "region {from} to {to}",
  trouble: "This clip could not be played ({reason}). Press play to try again.",
};
const decoded = new Map(); // promises of AudioBuffers by URL, the last used last
let audioContext = null;
let sounding = null; // the player that plays

function soundContext() {
  if (!audioContext) {
    audioContext = new AudioContext();
    if (navigator.audioSession) navigator.audioSession.type = "playback"; // else an iPhone's silent switch mutes it
  }
  return audioContext;
}

// A page that is opened from the disk may play the files beside it, and not read them: an <audio> element then stands in
// for the decoded sound, and for its source.
const fromDisk = (url) => location.protocol === "file:" && !url.startsWith("data:");

const measure = (url) => new Promise((done, fail) => {
  const audio = new Audio(url);
  audio.addEventListener("loadedmetadata", () => done({ duration: audio.duration, audio }));
  audio.addEventListener("error", () => fail(new Error("the file is not there")));
});

function elementSource(audio, { loop, loopStart, loopEnd }) {
  let timer = null;
  const source = {
    onended: null,
    connect: () => ({ connect: () => {} }),
    start: (at, from, length) => {
      audio.currentTime = from;
      audio.play();
      const again = () => {
        if (!loop) return source.stop();
        audio.currentTime = loopStart;
        timer = setTimeout(again, 1000 * (loopEnd - loopStart));
      };
      timer = setTimeout(again, 1000 * (loop ? loopEnd - from : length));
    },
    stop: () => {
      clearTimeout(timer);
      audio.pause();
      source.onended?.();
    },
  };
  return source;
}

function decode(url) {
  const load = async () => {
    if (fromDisk(url)) return measure(url);
    const answer = await fetch(url);
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
    return soundContext().decodeAudioData(await answer.arrayBuffer());
  };
  const buffer = decoded.get(url) || load();
  decoded.delete(url);
  decoded.set(url, buffer);
  buffer.catch(() => decoded.delete(url)); // the server may be back later
  if (decoded.size > DECODED) decoded.delete(decoded.keys().next().value);
  return buffer;
}

const stopSound = () => { if (sounding) sounding.pause(); };
const decibels = (value, unit) => `${value.toFixed(1).replace("-", "−")} ${unit}`;

// Players that share a position, a region and whether it loops: of two of them one plays on where the other was.
const playerGroup = () => ({ position: 0, region: null, looping: false, players: [] });

// A player of the sound at `url`. `view` is what the server says of it (`clip_view`), or the address of that; with null
// it is blind: it shows neither waveform nor mel picture nor level. `onHeard` is called once, when every part of the
// sound has been played; `onRegion` with [from, to] in seconds, or null. The last region is `group.region`.
function soundPlayer({ url, view, label, group = playerGroup(), words = WORDS, onHeard = () => {}, onRegion = () => {} }) {
  const canvas = make("canvas.wave", { "aria-hidden": "true" });
  const mel = make("img.mel", { alt: "", draggable: false });
  const selection = make("span.selection", { hidden: true });
  const head = make("span.head");
  const screen = make("div.screen", { role: "slider", tabindex: "0", "aria-label": `${words.position} ${label}`, "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0" },
    ...(view === null ? [] : [canvas, mel]), selection, head);
  const button = make("button.play", { type: "button", onclick: () => toggle() }, make("span.icon", { "aria-hidden": "true" }));
  const time = make("span.time");
  const loop = make("button.loop", { type: "button", title: `${words.loop} (l)`, "aria-label": `${words.loop} ${label}`, onclick: () => setLooping(!group.looping) }, words.loop);
  const level = make("span.level");
  const trouble = make("p.trouble", { role: "alert", hidden: true });
  const element = make("div.sound", { "data-url": url }, make("div.transport", {}, button, make("span.label", {}, label), time, loop), screen, ...(view === null ? [] : [level]), trouble);
  element.classList.toggle("blind", view === null);
  let seconds = 0;
  let points = [];
  let cells = null; // which parts have been played
  let heard = false;
  let current = null; // the sound that plays: {source, gain, at, from, until}
  let marked = 0; // the position up to which parts are marked as played
  let spoken = -1; // the whole second that a screen reader was told last

  const position = (at = soundContext().currentTime) => {
    if (!current) return group.position;
    const place = current.from + Math.max(0, at - current.at);
    const [first, last] = current.looped || [0, seconds];
    return current.looped && place >= last ? first + ((place - last) % (last - first)) : Math.min(place, current.until);
  };

  function mark(from, to) {
    if (!cells) return;
    cells.fill(1, Math.floor(from / CELL + 1e-6), Math.ceil(to / CELL - 1e-6));
    if (heard || cells.includes(0)) return;
    heard = true;
    element.classList.add("heard");
    onHeard();
  }

  function describe(buffer) {
    seconds = buffer.duration;
    cells ||= new Uint8Array(Math.max(1, Math.floor(seconds / CELL)));
    refresh();
  }

  function refresh() {
    const place = position();
    head.style.left = `${(100 * place) / (seconds || 1)}%`;
    time.textContent = `${place.toFixed(2)} / ${seconds.toFixed(2)} s`;
    const [first, last] = group.region || [0, 0];
    selection.hidden = !group.region;
    selection.style.left = `${(100 * first) / (seconds || 1)}%`;
    selection.style.width = `${(100 * (last - first)) / (seconds || 1)}%`;
    loop.setAttribute("aria-pressed", `${group.looping}`);
    button.setAttribute("aria-label", `${current ? words.pause : words.play} ${label}`);
    element.classList.toggle("playing", current !== null);
    if (current && Math.floor(place) === spoken) return;
    spoken = Math.floor(place);
    screen.setAttribute("aria-valuemax", seconds.toFixed(2));
    screen.setAttribute("aria-valuenow", place.toFixed(2));
    screen.setAttribute("aria-valuetext", words.place.replace("{place}", place.toFixed(2)).replace("{seconds}", seconds.toFixed(2)) + (group.region ? `; ${words.region.replace("{from}", first.toFixed(2)).replace("{to}", last.toFixed(2))}` : ""));
  }

  const refreshGroup = () => group.players.forEach((player) => player.refresh());

  function follow() {
    if (!current) return;
    const place = position();
    if (place < marked) { // a loop has begun again
      mark(marked, current.looped[1]);
      marked = current.looped[0];
    }
    mark(marked, place);
    marked = place;
    refresh();
    requestAnimationFrame(follow);
  }

  // Ends the sound at a time of the audio clock, without a click.
  function silence(at) {
    const { source, gain } = current;
    source.onended = null;
    gain.gain.setValueAtTime(1, at);
    gain.gain.linearRampToValueAtTime(0, at + FADE);
    source.stop(at + FADE);
    mark(Math.min(marked, position(at)), position(at));
    group.position = position(at);
    current = null;
    if (sounding === self) sounding = null;
    refreshGroup();
  }

  async function play(from) {
    const audio = soundContext();
    trouble.hidden = true;
    try {
      const [buffer] = await Promise.all([decode(url), audio.state === "running" ? null : audio.resume()]);
      describe(buffer);
      const at = audio.currentTime + 0.01;
      if (sounding && sounding !== self) sounding.silence(at);
      if (current) silence(at);
      const first = view === null && !heard && group.last !== self; // a rater's first hearing of it is of all of it
      start(buffer, at, from ?? (first ? 0 : group.position));
    } catch (error) {
      trouble.textContent = words.trouble.replace("{reason}", error.message);
      trouble.hidden = false;
    }
  }

  function start(buffer, at, from) {
    const [first, last] = group.region || [0, seconds];
    const begin = from >= first && from < last - TAIL ? from : first;
    const settings = { loop: group.looping, loopStart: first, loopEnd: last };
    const source = buffer.audio ? elementSource(buffer.audio, settings) : new AudioBufferSourceNode(audioContext, { buffer, ...settings });
    const gain = new GainNode(audioContext, { gain: 0 });
    gain.gain.setValueAtTime(begin > 0 ? 0 : 1, at); // a sound's own beginning is played as it is
    gain.gain.linearRampToValueAtTime(1, at + FADE);
    source.connect(gain).connect(audioContext.destination);
    if (group.looping) source.start(at, begin);
    else source.start(at, begin, last - begin);
    current = { source, gain, at, from: begin, until: last, looped: group.looping ? [first, last] : null };
    source.onended = () => {
      mark(marked, last);
      current = null;
      group.position = first;
      if (sounding === self) sounding = null;
      refreshGroup();
    };
    marked = begin;
    sounding = self;
    group.last = self;
    refreshGroup();
    follow();
  }

  const pause = () => { if (current) silence(soundContext().currentTime); };
  const toggle = () => (current ? pause() : play());

  function seek(place) {
    const to = Math.min(Math.max(0, place), seconds);
    if (group.region && (to < group.region[0] || to > group.region[1])) setRegion(null);
    if (sounding && group.players.includes(sounding)) sounding.play(to);
    group.position = to;
    refreshGroup();
  }

  function setRegion(region) {
    const playing = group.players.includes(sounding) ? sounding : null;
    group.region = region;
    if (region) group.position = region[0];
    if (playing) playing.play(region ? region[0] : position());
    refreshGroup();
    onRegion(region);
  }

  function setLooping(looping) {
    const playing = group.players.includes(sounding) ? sounding : null;
    group.looping = looping;
    if (playing) playing.play(playing.position());
    refreshGroup();
  }

  function draw() {
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    if (!width || !points.length) return;
    Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    const loudest = Math.max(1e-3, ...points.map(Math.abs));
    const bars = points.length / 2;
    pen.fillStyle = getComputedStyle(canvas).color;
    for (let bar = 0; bar < bars; bar += 1) {
      const [low, high] = [points[2 * bar] / loudest, points[2 * bar + 1] / loudest];
      const top = (height / 2) * (1 - 0.94 * high);
      pen.fillRect((bar * width) / bars, top, width / bars + scale / 2, Math.max(scale, (height / 2) * 0.94 * (high - low)));
    }
  }

  async function look() {
    const about = typeof view === "string" ? await fetch(view).then((answer) => (answer.ok ? answer.json() : null)).catch(() => null) : view;
    if (!about) return;
    seconds ||= about.seconds;
    points = about.points;
    mel.src = about.picture;
    cells ||= new Uint8Array(Math.max(1, Math.floor(seconds / CELL)));
    if (about.peak !== undefined) {
      level.textContent = about.peak === null ? "silent" : [about.lufs === null ? "" : decibels(about.lufs, "LUFS"), `peak ${decibels(about.peak, "dB")}`].filter(Boolean).join(" · ");
    }
    draw();
    refresh();
  }

  const at = (event) => {
    const box = screen.getBoundingClientRect();
    return seconds * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  screen.addEventListener("pointerdown", (down) => {
    if (down.button || !seconds) return;
    const begin = at(down);
    const span = (event) => [Math.min(begin, at(event)), Math.max(begin, at(event))];
    let drawn = null;
    const onMove = (event) => {
      if (!drawn && Math.abs(event.clientX - down.clientX) < 5) return;
      drawn = span(event);
      selection.hidden = false;
      selection.style.left = `${(100 * drawn[0]) / seconds}%`;
      selection.style.width = `${(100 * (drawn[1] - drawn[0])) / seconds}%`;
    };
    const onEnd = (event) => {
      for (const [name, listener] of [["pointermove", onMove], ["pointerup", onEnd], ["pointercancel", onEnd]]) screen.removeEventListener(name, listener);
      if (event.type === "pointercancel") refresh();
      else if (!drawn) seek(begin);
      else setRegion(drawn[1] - drawn[0] < SHORTEST ? null : drawn);
    };
    screen.setPointerCapture(down.pointerId);
    for (const [name, listener] of [["pointermove", onMove], ["pointerup", onEnd], ["pointercancel", onEnd]]) screen.addEventListener(name, listener);
  });

  const edge = (from, to) => { if (to - from >= SHORTEST) setRegion([from, to]); };
  const keys = {
    ArrowLeft: (event) => seek(position() - (event.shiftKey ? 1 : 0.1)),
    ArrowRight: (event) => seek(position() + (event.shiftKey ? 1 : 0.1)),
    Home: () => seek(0),
    End: () => seek(seconds),
    " ": (event) => { if (!event.repeat) toggle(); },
    "[": () => edge(position(), group.region ? group.region[1] : seconds),
    "]": () => edge(group.region ? group.region[0] : 0, position()),
    l: (event) => { if (!event.repeat) setLooping(!group.looping); },
    Escape: () => setRegion(null),
  };
  screen.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key] || (event.key === "Escape" && !group.region)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key](event);
  });

  const self = { element, toggle, play, pause, seek, setRegion, setLooping, refresh, silence, position, group, isHeard: () => heard, isPlaying: () => current !== null };
  group.players.push(self);
  refresh();
  new ResizeObserver(draw).observe(canvas);
  for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) matchMedia(query).addEventListener("change", draw);
  if (view === null) decode(url).then(describe, () => {}); // what failed is tried again when it is to be played
  else if (typeof view !== "string") look();
  else new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    look();
  }, { rootMargin: "300px" }).observe(element);
  return self;
}
