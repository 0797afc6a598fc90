// What @kubernetes/client-node does with an API server: CRUD, patches, a watch, an informer across a restart of the
// server. Line by line it says what it has seen; a line on standard input lets it go on after the restart.
const k8s = require("@kubernetes/client-node");
const readline = require("readline");

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const namespace = "default";
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

function say(...words) {
  console.log(words.join(" "));
}

function configMap(name, data) {
  return { metadata: { name, labels: { of: "node" } }, data };
}

async function until(look) {
  while (!look()) await new Promise((done) => setTimeout(done, 20));
}

async function main() {
  await core.createNamespacedConfigMap({ namespace, body: configMap("a", { color: "red" }) });
  const found = await core.readNamespacedConfigMap({ namespace, name: "a" });
  say("read", found.data.color);
  found.data.color = "blue";
  const stored = await core.replaceNamespacedConfigMap({ namespace, name: "a", body: found });
  say("replaced", stored.data.color);
  try {
    await core.replaceNamespacedConfigMap({ namespace, name: "a", body: found });
  } catch (err) {
    say("conflict", err.code);
  }
  const patched = await core.patchNamespacedConfigMap({
    namespace,
    name: "a",
    body: [{ op: "replace", path: "/data/color", value: "green" }],
  });
  say("patched", patched.data.color);
  const list = await core.listNamespacedConfigMap({ namespace, labelSelector: "of=node", limit: 1 });
  say("listed", list.items.length);
  const deployments = await apps.listDeploymentForAllNamespaces();
  say("deployments", deployments.items.length);
  const loaded = k8s.KubernetesObjectApi.makeApiClient(config);
  const made = await loaded.create({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "b", namespace } });
  say("made", made.metadata.name);

  const seen = [];
  const watch = new k8s.Watch(config);
  const request = await watch.watch(
    `/api/v1/namespaces/${namespace}/configmaps`,
    { labelSelector: "of=node", allowWatchBookmarks: true },
    (type, object) => type === "BOOKMARK" || seen.push(`${type}:${object.metadata.name}`),
    () => seen.push("end"),
  );
  await until(() => seen.includes("ADDED:a"));
  await core.deleteNamespacedConfigMap({ namespace, name: "a" });
  await until(() => seen.includes("DELETED:a"));
  say("watched", seen.join(","));
  request.abort();

  const informer = k8s.makeInformer(
    config,
    `/api/v1/namespaces/${namespace}/configmaps`,
    () => core.listNamespacedConfigMap({ namespace, labelSelector: "of=node" }),
    "of=node",
  );
  const known = new Set();
  informer.on("add", (object) => known.add(object.metadata.name));
  informer.on("delete", (object) => known.delete(object.metadata.name));
  informer.on("error", () => setTimeout(() => informer.start(), 50));
  await informer.start();
  await core.createNamespacedConfigMap({ namespace, body: configMap("c", {}) });
  await until(() => known.has("c"));
  say("informed", [...known].join(","));
  await lines.next();
  await core.createNamespacedConfigMap({ namespace, body: configMap("d", {}) });
  await until(() => known.has("d"));
  say("again", [...known].sort().join(","));
  await informer.stop();
  process.exit(0);
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
