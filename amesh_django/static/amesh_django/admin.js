// A button beside each id and key that copies it. Without a clipboard (plain http) one click still selects the text.
"use strict";
(function () {
  const words = document.currentScript.dataset;

  function addButton(code) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "amesh-copy";
    button.textContent = words.copy;
    button.setAttribute("aria-label", words.copy + " " + code.textContent);
    button.addEventListener("click", async function () {
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch (error) {
        getSelection().selectAllChildren(code);
        return;
      }
      button.textContent = words.copied;
      setTimeout(function () { button.textContent = words.copy; }, 2000);
    });
    code.after(button);
  }

  function start() {
    if (navigator.clipboard) {
      document.querySelectorAll("[data-amesh-copy]").forEach(addButton);
    }
  }

  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", start);
  } else {
    start();
  }
})();
