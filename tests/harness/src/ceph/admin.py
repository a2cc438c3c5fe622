"""Does an administrator's work on a test cluster: reads one request as JSON from each line, answers each with a line.

Run by the harness with the path of a ceph.conf. Through librados, because a call of the `ceph` program costs most of a second.
"""

import json
import sys

import rados
import rbd

READY = "ready"  # an object that is written to see whether a pool takes writes


def command(cluster, **words):
    code, out, status = cluster.mon_command(json.dumps({"format": "json", **words}), b"")
    if code:
        raise RuntimeError(f"{words}: error {code}: {status}")
    return json.loads(out) if out.strip() else None


def create_pool(cluster, pool, application):
    command(cluster, prefix="osd pool create", pool=pool, pg_num=8, pgp_num=8)
    command(cluster, prefix="osd pool application enable", pool=pool, app=application)
    # Else a pool of the same name that was removed a moment ago is taken for this one.
    cluster.wait_for_latest_osdmap()
    with cluster.open_ioctx(pool) as ioctx:
        # Waits until the pool's placement groups are active.
        ioctx.write_full(READY, b"")
        ioctx.remove_object(READY)


def create_namespace(cluster, pool, namespace):
    with cluster.open_ioctx(pool) as ioctx:
        rbd.RBD().namespace_create(ioctx, namespace)


def snapshots(cluster, pool, namespace):
    """How many images of a namespace have a snapshot. Looks at the images' headers, for it is asked a thousand times a second."""
    count = 0
    with cluster.open_ioctx(pool) as ioctx:
        ioctx.set_namespace(namespace)
        for header in [entry.key for entry in ioctx.list_objects() if entry.key.startswith("rbd_header.")]:
            with rados.ReadOpCtx() as look:
                found, _ = ioctx.get_omap_vals(look, "", "snapshot_", 1)
                try:
                    ioctx.operate_read_op(look, header)
                except rados.ObjectNotFound:
                    continue
                count += bool(list(found))
    return count


def answer(cluster, request):
    if "command" in request:
        return command(cluster, **request["command"])
    if "pool" in request:
        return create_pool(cluster, **request["pool"])
    if "snapshots" in request:
        return snapshots(cluster, **request["snapshots"])
    return create_namespace(cluster, **request["namespace"])


def main():
    cluster = rados.Rados(conffile=sys.argv[1], name="client.admin")
    cluster.connect(timeout=120)
    for line in sys.stdin:
        try:
            reply = {"answer": answer(cluster, json.loads(line))}
        except Exception as error:  # every one is the caller's to show
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


main()
