const box = element.querySelector('.box');
box.innerHTML = "<input type='file' accept='image/*' multiple><p></p>";
box.querySelector('input').addEventListener('change', async (event) => {
  const kept = [];
  for (const file of event.target.files) {
    const answer = await server.keep({binary: true, data: {file}});
    if (!answer || answer.error) box.querySelector('p').textContent = answer ? answer.error : 'The upload failed.';
    else kept.push(answer);
  }
  props.value = JSON.stringify({pictures: kept});
  trigger('upload');
  trigger('input');
});
watch('value', () => { box.querySelector('p').textContent = props.value; });
