// What is clicked is the next query; the address of the page is that of the query.
let isVisit = true; // the address came first: it is in the history already
let wasClicked = false;

function addressOf(query) {
  const words = new URLSearchParams(query);
  const theme = new URLSearchParams(location.search).get('__theme');
  if (theme) words.set('__theme', theme);
  return '?' + words;
}

function ask(data) {
  wasClicked = true;
  trigger('ask', data);
}

element.addEventListener('click', (event) => {
  const asked = event.target.closest('[data-ask]');
  if (asked) ask({ ...asked.dataset });
  const copy = event.target.closest('[data-copy]');
  if (copy) {
    navigator.clipboard?.writeText(location.href).then(() => { copy.textContent = 'Copied'; });
  }
});

function arrived() {
  const shown = element.querySelector('.answer');
  if (!shown) return;
  document.title = shown.dataset.title;
  const address = addressOf(shown.dataset.address);
  if (!isVisit && address !== location.search) history.pushState(null, '', address);
  // at the beginning a sentence is typed; not on a phone, whose keyboard would hide the photos
  if (isVisit && shown.querySelector('.begin') && matchMedia('(hover: hover)').matches) {
    document.querySelector('#text textarea')?.focus();
  }
  isVisit = false;
  if (wasClicked) {
    scrollTo({ top: 0 });
    shown.querySelector('.query')?.focus({ preventScroll: true });
  }
  wasClicked = false;
  dispatchEvent(new CustomEvent('xmodal:answer', { detail: shown }));
}

function visit() {
  isVisit = true;
  trigger('visit', { address: location.search });
}

watch('value', arrived);
addEventListener('popstate', visit);
addEventListener('xmodal:click', () => { wasClicked = true; }); // on the map
visit();
