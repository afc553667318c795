// Follows a verification of the audit log that runs on the server: every two seconds, it takes the newest state from the page itself.
"use strict";
(function () {
  async function follow() {
    let page;
    try {
      const response = await fetch(location.href, { credentials: "same-origin" });
      if (!response.ok || response.redirected) {
        return;
      }
      page = new DOMParser().parseFromString(await response.text(), "text/html");
    } catch (error) {
      setTimeout(follow, 10000);
      return;
    }
    const state = document.getElementById("amesh-log-state");
    const next = page.getElementById("amesh-log-state");
    if (!next.querySelector("progress")) {
      state.replaceChildren(...next.childNodes);
      document.querySelectorAll("button[disabled]").forEach(function (button) {
        button.disabled = false;
      });
      return;
    }
    const bar = state.querySelector("progress");
    const now = next.querySelector("progress");
    if (bar) {
      bar.max = now.max;
      bar.value = now.value;
    }
    state.querySelector("p").textContent = next.querySelector("p").textContent;
    setTimeout(follow, 2000);
  }

  setTimeout(follow, 2000);
})();
