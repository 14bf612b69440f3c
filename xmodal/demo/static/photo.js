// A photo is chosen, dropped anywhere on the page, or pasted: it is sent, and searched with.
const label = element.querySelector('.send');
const input = element.querySelector('input');

async function send(file) {
  if (!file) return;
  if (file.size > Number(label.dataset.most)) {
    trigger('send', { fault: label.dataset.tooLarge });
    return;
  }
  label.classList.add('busy');
  try {
    const { path } = await upload(file);
    trigger('send', { path, name: file.name });
  } catch (error) {
    trigger('send', { fault: 'This photo could not be sent. Is it still there, and smaller than the limit?' });
  } finally {
    label.classList.remove('busy');
    input.value = ''; // so that the same file can be chosen again
  }
}

input.addEventListener('change', () => send(input.files[0]));
document.addEventListener('dragover', (event) => {
  if (event.dataTransfer.types.includes('Files')) event.preventDefault();
});
document.addEventListener('drop', (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
document.addEventListener('paste', (event) => {
  if (event.clipboardData.files.length) send(event.clipboardData.files[0]);
});
