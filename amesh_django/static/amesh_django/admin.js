// Adds a copy button to each device ID and key. Without a clipboard (plain http), one click selects the text instead.
"use strict";
(function () {
  const words = document.currentScript.dataset;

  function addButton(code) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "amesh-copy";
    const say = function (word) {
      button.textContent = word;
      button.setAttribute("aria-label", word + " " + code.textContent);
    };
    say(words.copy);
    button.addEventListener("click", async function () {
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch (error) {
        getSelection().selectAllChildren(code);
        return;
      }
      say(words.copied);
      setTimeout(say, 2000, words.copy);
    });
    code.after(button);
  }

  function start() {
    addButtons(document);
    document.addEventListener("amesh:shown", function (event) {
      addButtons(event.target); // a part of the page that was replaced
    });
  }

  function addButtons(part) {
    if (navigator.clipboard) {
      part.querySelectorAll("[data-amesh-copy]").forEach(addButton);
    }
  }

  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", start);
  } else {
    start();
  }
})();
