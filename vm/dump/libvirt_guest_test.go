package dump

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// libvirt is a libvirtd of the test's own.
type libvirt struct{ *guestlab.Libvirt }

// start has images of saved machines, and dumps that are streams, in the given format
// until the test ends.
func (l *libvirt) start(t *testing.T, format string) {
	t.Helper()
	l.Start(t, fmt.Sprintf("save_image_format = %q\ndump_image_format = %[1]q\n", format))
}

func (l *libvirt) virsh(t *testing.T, args ...string) {
	t.Helper()
	if _, err := l.Virsh(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
}

// define defines a machine that never runs, with known bytes in its RAM.
func (l *libvirt) define(t *testing.T) map[mem.PA][]byte {
	t.Helper()
	known := pattern(3, 200<<12)
	clear(known[20<<12 : 60<<12])
	l.Put(t, "known", known)
	l.Put(t, "domain.xml", fmt.Appendf(nil, `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>idle</name><memory unit='MiB'>64</memory><vcpu>2</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os><seclabel type='none'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='loader,file=%s/known,addr=0x1000000,force-raw=on'/></qemu:commandline></domain>`, l.Dir))
	l.virsh(t, "define", filepath.Join(l.Dir, "domain.xml"))
	t.Cleanup(func() {
		for _, args := range [][]string{{"destroy", "idle"}, {"undefine", "idle", "--managed-save"}} { // it may not run
			_, _ = l.Virsh(context.Background(), args...)
		}
	})
	return map[mem.PA][]byte{16 << 20: known}
}

// TestLibvirt opens what libvirt's commands write: dumps of memory in QEMU's
// formats, a dump that is a migration stream, saved machines, packed too.
func TestLibvirt(t *testing.T) {
	l := &libvirt{guestlab.NewLibvirt(t)}
	for _, format := range []string{"raw", "gzip", "bzip2", "xz", "lzop"} { // as libvirt 9.0 has them
		t.Run(format, func(t *testing.T) {
			l.start(t, format)
			known := l.define(t)
			check := func(name string, ranges []mem.Range) {
				t.Run(name, func(t *testing.T) {
					path := filepath.Join(l.Dir, name)
					vmtest.Run(t, func(t *testing.T) vm.Machine { return open(t, path) }, vmtest.Want{Ranges: ranges, Bytes: known, CPUs: 2})
				})
			}
			ram := []mem.Range{{Start: 0, Size: 64 << 20}}
			l.virsh(t, "start", "idle", "--paused")
			if format == "raw" {
				l.virsh(t, "dump", "idle", filepath.Join(l.Dir, "elf"), "--memory-only")
				l.virsh(t, "dump", "idle", filepath.Join(l.Dir, "kdump"), "--memory-only", "--format", "kdump-zlib")
				check("elf", nil)
				check("kdump", nil)
			}
			l.virsh(t, "dump", "idle", filepath.Join(l.Dir, "stream"))
			check("stream", ram)
			// QEMU moves no machine twice that has not run since.
			l.virsh(t, "destroy", "idle")
			l.virsh(t, "start", "idle", "--paused")
			l.virsh(t, "save", "idle", filepath.Join(l.Dir, "saved"))
			check("saved", ram)
			if format == "raw" {
				l.virsh(t, "start", "idle", "--paused")
				l.virsh(t, "managedsave", "idle")
				check("CONFIG_HOME/libvirt/qemu/save/idle.save", ram)
			}
		})
	}
}
