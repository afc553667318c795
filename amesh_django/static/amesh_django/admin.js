// Adds a copy button to each device ID and key, and names the search box. Without a clipboard (plain http), one click selects the
// text instead.
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

  // The search box of Django's admin (select2) has no name for screen readers. It takes that of the field.
  function nameSearchBox(select) {
    const label = document.querySelector('label[for="' + select.id + '"]');
    const box = select.parentElement.querySelector(".select2-selection");
    if (!label || !box) {
      return;
    }
    label.id = label.id || select.id + "-label";
    const shown = box.querySelector(".select2-selection__rendered");
    box.setAttribute("aria-labelledby", label.id + (shown ? " " + shown.id : ""));
    if (shown) {
      shown.setAttribute("aria-labelledby", label.id);
    }
  }

  function start() {
    addButtons(document);
    document.addEventListener("amesh:shown", function (event) {
      addButtons(event.target); // a part of the page that was replaced
    });
    if (window.django && django.jQuery) {
      django.jQuery(function () {
        document.querySelectorAll("select.admin-autocomplete").forEach(nameSearchBox);
      });
    }
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
