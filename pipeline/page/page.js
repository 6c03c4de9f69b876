// A place of the depth map: what its code is, and a frame around it in the map and in the picture.
function look(cell) {
  const cells = cell.parentElement, article = cell.closest('.answer');
  const side = Number(cells.dataset.side), number = [...cells.children].indexOf(cell);
  article.querySelector('.place').textContent = cell.getAttribute('aria-label') + '.';
  for (const marker of article.querySelectorAll('.marker')) {
    marker.hidden = false;
    marker.style.cssText = `left: ${100 * (number % side) / side}%; top: ${100 * Math.floor(number / side) / side}%;
      width: ${100 / side}%; height: ${100 / side}%`;
  }
  for (const other of cells.children) other.tabIndex = other === cell ? 0 : -1;
}
for (const kind of ['focusin', 'pointerover', 'click']) {
  document.addEventListener(kind, event => {
    const cell = event.target.closest?.('.cells > button');
    if (cell) look(cell);
  });
}
document.addEventListener('keydown', event => {
  const cell = event.target.closest?.('.cells > button');
  if (!cell) return;
  const cells = [...cell.parentElement.children], side = Number(cell.parentElement.dataset.side), at = cells.indexOf(cell);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - side, ArrowDown: at + side, Home: 0, End: cells.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  cells[to]?.focus();
});
document.addEventListener('change', event => {
  const box = event.target.closest?.('input[data-object]');
  if (!box) return;
  box.closest('.answer').querySelector(`img[data-object="${box.dataset.object}"]`).hidden = !box.checked;
});

// What Gradio leaves without a name, and screen readers call by nothing else: the groups of choices, and the examples, each a button
// with a picture, whose questions the page lists out of sight.
function name() {
  for (const group of document.querySelectorAll('fieldset:not([aria-label])')) {
    const legend = group.querySelector('[data-testid=block-info]');
    if (legend) group.setAttribute('aria-label', legend.textContent.trim());
  }
  const asked = document.querySelectorAll('#unseen li');
  document.querySelectorAll('#examples .gallery button').forEach((button, number) => {
    if (asked[number] && !button.hasAttribute('aria-label')) button.setAttribute('aria-label', asked[number].textContent);
  });
}

// On a narrow window the answers stand below what is entered: they come into view when one begins, and the focus stays where it is.
let begun;
function show() {
  const place = document.querySelector('#answered');
  const now = place?.querySelector('.caret') ? 'written' : place?.querySelector('.refused')?.textContent;
  if (now !== begun && now !== undefined && place.getBoundingClientRect().top > innerHeight / 2) {
    const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    place.scrollIntoView({ behavior: still ? 'instant' : 'smooth', block: 'start' });
  }
  begun = now;
}
function again() { // the same refusal may be the answer once more, and the page would not change; after Enter the browser scrolls first
  setTimeout(() => { begun = undefined; show(); }, 100);
}
document.addEventListener('click', event => { if (event.target.closest?.('#ask, #follow')) again(); });
document.addEventListener('keydown', event => { if (event.key === 'Enter' && event.target.closest?.('#question')) again(); });

// An answer grows in dozens of steps, each a new piece of page; who listens to the page is told when it begins and how it ends.
const told = document.createElement('div');
told.setAttribute('role', 'status');
told.style.cssText = 'position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)';
function tell() {
  if (!document.body) return;
  if (!told.isConnected) document.body.append(told);
  const answers = [...document.querySelectorAll('#answers .answer:has(.said)')];
  const ended = answers.map(answer => {
    const masks = answer.querySelectorAll('figcaption label').length, depth = answer.querySelector('.cells') ? ' A depth map.' : '';
    return `${answer.querySelector('h2').textContent}: ${answer.querySelector('.said').textContent}. Masks: ${masks}.${depth}`;
  });
  const text = document.querySelector('#answers .caret') ? 'The answer is being written.' : ended.join(' ');
  if (told.textContent !== text) told.textContent = text;
}
new MutationObserver(() => { tell(); name(); show(); }).observe(document.documentElement, { childList: true, subtree: true });
