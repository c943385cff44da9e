#!/bin/sh
# Xen hotplug script for disks that 'vmscope xen-block' serves:
#   disk = [ "vdev=xvda,access=rw,backendtype=phy,script=block-vmscope,target=/srv/web1.img" ]
# xl runs it with "add" or "remove", and the path of the disk in xenstore in XENBUS_PATH.
[ "$1" = add ] || exit 0

# The kernel's own back end takes every disk that it sees; this one is not for it.
device=$(echo "$XENBUS_PATH" | sed 's,^.*backend/vbd/\([0-9]*\)/\([0-9]*\)$,vbd-\1-\2,')
driver=/sys/bus/xen-backend/devices/$device/driver
[ -e "$driver" ] && echo "$device" > "$driver/unbind"

# vmscope says so when it has the disk.
tries=0
while [ $tries -lt 50 ]; do
	if xenstore-exists "$XENBUS_PATH/vmscope"; then
		xenstore-write "$XENBUS_PATH/hotplug-status" connected
		exit 0
	fi
	sleep 0.1
	tries=$((tries + 1))
done
target=$(xenstore-read "$XENBUS_PATH/params")
xenstore-write "$XENBUS_PATH/hotplug-error" "no 'vmscope xen-block --image $target' runs: start it first"
xenstore-write "$XENBUS_PATH/hotplug-status" error
exit 1
