'use strict';
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Each head sorts its column: numbers from the highest, a second press the other way; cells without a figure come last.
const value = (row, column) => {
  const data = row.cells[column].dataset;
  const text = data[document.body.classList.contains('last') ? 'last' : 'best'] ?? data.value ?? '';
  return text === '' || text === 'None' ? NaN : Number(text);
};
const sort = (table) => {
  const head = table.querySelector('[aria-sort]');
  if (!head) return;
  const up = head.getAttribute('aria-sort') === 'ascending';
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a, head.cellIndex), value(b, head.cellIndex)];
    return isNaN(x) - isNaN(y) || (up ? x - y : y - x) || 0;
  });
  table.tBodies[0].append(...rows);
};
const press = (head) => {
  const up = head.getAttribute('aria-sort') === 'descending' || (head.cellIndex === 0 && !head.hasAttribute('aria-sort'));
  all('th', head.closest('table')).forEach((other) => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  sort(head.closest('table'));
};
all('thead button').forEach((button) => button.addEventListener('click', () => press(button.closest('th'))));

// The epoch decides every figure of the page, and the order of the sorted tables.
all('input[name=epoch]').forEach((input) => input.addEventListener('change', () => {
  document.body.classList.toggle('last', input.value === 'last' && input.checked);
  all('table').forEach(sort);
}));

// With which figures the cells are compared.
all('input[name=against]').forEach((input) => input.addEventListener('change', () => {
  document.body.dataset.against = input.value;
}));

// A row that is not chosen is hidden in the tables, the charts and their keys.
const filter = () => all('.row-choice').forEach((box) => {
  all(`[data-row="${box.value}"]`).forEach((element) => { element.style.display = box.checked ? '' : 'none'; });
});
all('.row-choice').forEach((box) => box.addEventListener('change', filter));
all('[data-choose]').forEach((button) => button.addEventListener('click', () => {
  all('.row-choice').forEach((box) => { box.checked = button.dataset.choose === 'all'; });
  filter();
}));

// The edges of a wide table fade while there is more to scroll.
const fade = (box) => {
  box.classList.toggle('more-left', box.scrollLeft > 1);
  box.classList.toggle('more-right', box.scrollWidth - box.clientWidth - box.scrollLeft > 1);
};
const resized = new ResizeObserver((entries) => entries.forEach((entry) => fade(entry.target)));
all('.scroll').forEach((box) => {
  box.addEventListener('scroll', () => fade(box), { passive: true });
  resized.observe(box);
});

// A page that is opened as a file may have no clipboard; then the command is selected and copied the older way.
const copy = async (button) => {
  const command = button.parentElement.querySelector('pre');
  try {
    await navigator.clipboard.writeText(command.textContent);
  } catch {
    getSelection().selectAllChildren(command);
    document.execCommand('copy');
  }
  button.textContent = 'copied';
  setTimeout(() => { button.textContent = 'copy'; }, 1500);
};
all('.copy').forEach((button) => button.addEventListener('click', () => copy(button)));

all('[data-dialog]').forEach((button) => button.addEventListener('click', () => {
  document.getElementById(button.dataset.dialog).showModal();
}));
all('dialog').forEach((dialog) => dialog.addEventListener('click', (event) => {
  if (event.target === dialog || event.target.classList.contains('close')) dialog.close();
}));
