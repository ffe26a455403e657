// Before anything is drawn: the colours that were chosen. A classic script, so that the page does not flash.
try {
  const chosen = localStorage.getItem("retain.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // no storage: the system's colours
}
