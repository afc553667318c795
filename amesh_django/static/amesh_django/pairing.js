// Follows a pairing: asks the server once a second what the page must show, and counts down. A WebSocket only says when to ask.
"use strict";
(function () {
  const region = document.getElementById("amesh-pairing");
  const words = region.dataset;
  const trouble = document.getElementById("amesh-trouble");
  const ahead = Date.now() - 1000 * Number(words.now); // the clock of this machine may be wrong
  let tag = words.tag;
  let isOver = words.over === "1";
  let isLive = false;
  let failures = 0;
  let timer = null;
  let isAsking = false;
  let isWanted = false;

  function complain(kind) {
    trouble.hidden = !kind;
    for (const line of trouble.children) {
      line.hidden = line.dataset.when !== kind;
    }
  }

  function show(state) {
    const hadFocus = region.contains(document.activeElement);
    const isFree = hadFocus || document.activeElement === document.body;
    region.innerHTML = state.html;
    region.dispatchEvent(new CustomEvent("amesh:shown", { bubbles: true }));
    document.getElementById("amesh-status").textContent = state.status;
    isOver = state.over;
    if (!focus(isFree) && hadFocus) {
      const title = region.querySelector("h2");
      title.tabIndex = -1; // not lost: the button that had it may be gone
      title.focus();
    }
    tick();
  }

  function focus(isFree) {
    const field = region.querySelector("#amesh-code");
    if (isFree && field) {
      field.focus();
    }
    return isFree && field;
  }

  async function ask() {
    if (isAsking) {
      isWanted = true;
      return;
    }
    clearTimeout(timer);
    isAsking = true;
    isWanted = false;
    try {
      const response = await fetch(words.state, {
        headers: { "If-None-Match": '"' + tag + '"', Accept: "application/json" },
        cache: "no-store",
        credentials: "same-origin",
        redirect: "manual",
      });
      if (response.status === 200) {
        const state = await response.json();
        tag = response.headers.get("ETag").replace(/^W\/|"/g, "");
        show(state);
      } else if (response.type === "opaqueredirect" || [401, 403, 404].includes(response.status)) {
        isOver = true;
        complain("left");
        return;
      } else if (response.status !== 304) {
        throw new Error(response.status);
      }
      failures = 0;
      complain("");
    } catch (error) {
      failures += 1;
      if (failures > 1) {
        complain("offline");
      }
    } finally {
      isAsking = false;
      if (!isOver) {
        timer = setTimeout(ask, isWanted ? 0 : pause());
      }
    }
  }

  function pause() {
    if (failures) {
      return Math.min(1000 * 2 ** (failures - 1), 10000);
    }
    return document.hidden || isLive ? 5000 : 1000;
  }

  function tick() {
    const clock = region.querySelector("[data-amesh-ends]");
    if (!clock) {
      return;
    }
    const left = Math.max(0, Math.round(Number(clock.dataset.ameshEnds) - (Date.now() - ahead) / 1000));
    clock.textContent = Math.floor(left / 60) + ":" + String(left % 60).padStart(2, "0");
    const said = words[left];
    if (said) {
      document.getElementById("amesh-time").textContent = said;
    }
  }

  function listen() {
    const address = new URL(words.live, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.addEventListener("open", function () {
      isLive = true;
    });
    socket.addEventListener("message", ask);
    socket.addEventListener("close", function () {
      isLive = false;
      if (!isOver) {
        ask();
      }
    });
  }

  document.addEventListener("visibilitychange", function () {
    if (!document.hidden && !isOver) {
      ask();
    }
  });
  focus(true);
  tick();
  setInterval(tick, 1000);
  if (!isOver) {
    timer = setTimeout(ask, 1000);
    if (words.live) {
      listen();
    }
  }
})();
