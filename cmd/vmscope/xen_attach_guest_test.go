package main

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// attachConfig has a Xen host bring what the tests here need: two more disks, the kernel's own back end, and its client of
// NBD with the program that starts it.
func attachConfig(t *testing.T, cfg *guestlab.XenConfig) {
	t.Helper()
	k, err := guestlab.Fetch(t.Context(), "trixie-cloud") // bookworm's busybox has no nbd-client
	if err != nil {
		t.Fatal(err)
	}
	cfg.Files["/srv/hot.img"], cfg.Files["/srv/nbd.img"], cfg.Files["/bin/nbd-client"] = xenImage(t), xenImage(t), k.Busybox()
	cfg.Spare = []string{"xen_blkback", "nbd"}
}

// testBalloon has a PV domain give memory back: its table of frames says where.
func (x *xenCLI) testBalloon(t *testing.T, d *guestlab.Domain) {
	target := "xen:" + d.Name()
	words := func(what string, n int) []byte {
		// Not by run: these are bytes.
		out, err := x.host.Run(t.Context(), fmt.Sprintf("vmscope read %s %s --len %d --raw", target, what, 8*n))
		if err != nil || len(out) != 8*n {
			t.Fatalf("%s: %d bytes of %d, %v", what, len(out), 8*n, err)
		}
		return []byte(out)
	}
	ram := func() float64 {
		for _, v := range x.lines(t, "vmscope vms --quick --json") {
			if v["name"] == d.Name() {
				return v["ram"].(float64)
			}
		}
		return 0
	}
	const less = 32 << 20
	before := ram()
	x.run(t, 0, fmt.Sprintf("xl mem-set %s %dm", d.Name(), (int(before)-less)>>20))
	x.await(t, "the domain gives memory back", "true", func(string) bool { return ram() <= before-less+1<<20 })
	p2m := binary.LittleEndian.Uint64(words("--sym xen_p2m_addr", 1))
	gone, n := -1, 0
	table := words(fmt.Sprintf("--va %#x", p2m), int(before)>>12)
	for page := range int(before) >> 12 {
		if binary.LittleEndian.Uint64(table[page*8:]) == ^uint64(0) {
			gone = page
			n++
		}
	}
	if n < (less-1<<20)>>12 {
		t.Fatalf("%d pages of %d given back", n, less>>12)
	}
	out := x.run(t, 2, fmt.Sprintf("vmscope read %s --pa %#x --len 8", target, gone<<12))
	if !strings.Contains(out, "gave the frame back") || strings.Count(out, "\n") != 1 {
		t.Errorf("page %#x of %d that were given back: %q", gone, n, out)
	}
	x.run(t, 0, "vmscope check "+target+" --only frames")
}

// testHot is a disk that a running domain gets, and gives back. The kernel's own back end is there, too: the disk is not
// for it. The front end has a ring of several pages, and discards.
func (x *xenCLI) testHot(t *testing.T, d *guestlab.Domain) {
	x.run(t, 0, "modprobe xen_blkback")
	x.inside(t, d, "rmmod xen_blkfront; insmod /lib/modules/$(uname -r)/xen_blkfront.ko max_ring_page_order=2")
	disk := x.serve(t, "/srv/hot.img", "xvdb")
	x.run(t, 0, fmt.Sprintf("xl block-attach %s '%s'", d.Name(), disk.line()))
	x.inside(t, d, "until [ -b /dev/xvdb ]; do sleep 0.1; done; mkdir -p /hot && mount -t ext4 /dev/xvdb /hot && mkdir /hot/root && echo word >/hot/root/file && sync")
	disk.events(t, "MKDIR: /root", "MKFILE: /root/file")
	front := x.run(t, 0, fmt.Sprintf("xenstore-ls /local/domain/%d/device/vbd", d.ID))
	for _, want := range []string{"ring-ref3 = ", `feature-persistent = "1"`} {
		if !strings.Contains(front, want) {
			t.Errorf("no %s in what the front end asked for:\n%s", want, front)
		}
	}
	used := func() string { return x.run(t, 0, "du -k "+disk.image) }
	x.inside(t, d, "dd if=/dev/urandom of=/hot/much bs=1M count=4; sync")
	full := used()
	x.inside(t, d, "rm /hot/much; sync; fstrim /hot")
	if now := used(); now == full {
		t.Errorf("the image has %s before and behind the discards", now)
	}
	x.inside(t, d, "umount /hot")
	x.run(t, 0, fmt.Sprintf("xl block-detach %s xvdb", d.Name()))
	x.inside(t, d, "while [ -b /dev/xvdb ]; do sleep 0.1; done")
	if got := disk.content(t, "/root")["file"]; got != "word\n" {
		t.Errorf("the file holds %q", got)
	}
	disk.end(t)
}

// testNBD is the other way: the kernel's NBD client has the disk from us, and its own back end serves that to the domain.
func (x *xenCLI) testNBD(t *testing.T, d *guestlab.Domain) {
	disk := &xenDisk{x, "/srv/nbd.img", "xvdc"}
	x.run(t, 0, "modprobe -a xen_blkback nbd")
	x.run(t, 0, fmt.Sprintf("{ setsid vmscope nbd --image %[1]s --socket 127.0.0.1:10809 --watch /root </dev/null >>%[1]s.events 2>%[1]s.err & }", disk.image))
	x.await(t, "nbd serves", "cat "+disk.image+".err", func(out string) bool { return strings.Contains(out, "serving at") })
	// Of itself it makes sectors of 4096 bytes, too large for the file system's blocks.
	x.run(t, 0, "{ setsid nbd-client -b 512 127.0.0.1 10809 /dev/nbd0 </dev/null >/srv/client 2>&1 & }")
	x.await(t, "the kernel's client has the disk", "cat /sys/block/nbd0/size /srv/client", func(out string) bool {
		return strings.HasPrefix(out, fmt.Sprintln(16<<20/512))
	})
	x.run(t, 0, fmt.Sprintf("xl block-attach %s 'vdev=%s,access=rw,backendtype=phy,target=/dev/nbd0'", d.Name(), disk.vdev))
	x.inside(t, d, "until [ -b /dev/xvdc ]; do sleep 0.1; done; mkdir -p /nbd && { mount -t ext4 /dev/xvdc /nbd || { dmesg | tail -n 5; exit 1; } >&2; }")
	x.inside(t, d, "mkdir /nbd/root; touch /nbd/root/bar; sync; cd /nbd/root; mkdir foo; sync; touch dummy; sync; rm bar; sync")
	disk.events(t, "MKDIR: /root/foo", "MKFILE: /root/dummy", "RMFILE: /root/bar")
	w := x.write(t, d, "/nbd/root")
	w.goOn(t, 0, 20)
	last := w.stop(t)
	disk.events(t, "MKFILE: /root/ack20")
	x.inside(t, d, "umount /nbd")
	x.run(t, 0, fmt.Sprintf("xl block-detach %s %s", d.Name(), disk.vdev))
	x.run(t, 0, "nbd-client -d /dev/nbd0")
	files := disk.content(t, "/root")
	w.check(t, last, files)
	if _, there := files["bar"]; there || files["dummy"] != "" {
		t.Errorf("bar is there: %v; dummy holds %q", there, files["dummy"])
	}
	disk.end(t)
}
