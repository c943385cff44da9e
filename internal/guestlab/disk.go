package guestlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Disk is a disk of a guest. QEMU's node of the disk as the guest sees it is named ID, that of the image file below it
// ID-file, and the device ID-dev.
type Disk struct {
	ID     string // default disk0, disk1, …; also its serial number in the guest, of which a bus may keep only the start
	Path   string // the image
	Format string // "raw" (default) or "qcow2"
	Bus    string // "virtio" (default), "scsi" (virtio-scsi), "nvme" or "ide"

	// Log is a file in which QEMU records all writes in the format of dm-log-writes, in sectors of 512 bytes. It is made
	// anew, and the number of entries in its super block is right at each moment. The node above is then ID-logged.
	Log string

	FileOptions   string // more options of the image file's node, such as "cache.direct=on"
	DeviceOptions string // more options of the device, such as "num-queues=4"
}

var buses = []string{"virtio", "scsi", "nvme", "ide"}

func (d *Disk) withDefaults(n int) error {
	if d.ID == "" {
		d.ID = fmt.Sprint("disk", n)
	}
	if d.Format == "" {
		d.Format = "raw"
	}
	if d.Bus == "" {
		d.Bus = buses[0]
	}
	if first := d.ID[0]; first|0x20 < 'a' || first|0x20 > 'z' || len(d.ID+"-logged") > 31 {
		return fmt.Errorf("guestlab: disk %q: QEMU wants an identifier that starts with a letter and has at most 24 bytes", d.ID)
	}
	if d.Path == "" || !slices.Contains(buses, d.Bus) || strings.ContainsAny(d.ID, ",=/\n") || strings.ContainsAny(d.Path+d.Log+d.Format, ",\n") {
		return fmt.Errorf("guestlab: disk %+v would be misread on QEMU's command line", *d)
	}
	return nil
}

// qemuArgs is the part of QEMU's command line for the disk.
func (d *Disk) qemuArgs() []string {
	options := func(base, more string) string {
		if more != "" {
			base += "," + more
		}
		return base
	}
	top := d.ID
	args := []string{
		"-blockdev", options(fmt.Sprintf("driver=file,node-name=%s-file,filename=%s,discard=unmap", d.ID, d.Path), d.FileOptions),
		"-blockdev", fmt.Sprintf("driver=%s,node-name=%s,file=%s-file,discard=unmap", d.Format, d.ID, d.ID),
	}
	if d.Log != "" {
		top += "-logged"
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=file,node-name=%s-log,filename=%s", d.ID, d.Log),
			"-blockdev", fmt.Sprintf("driver=blklogwrites,node-name=%s,file=%s,log=%s-log,log-sector-size=512,log-super-update-interval=1,discard=unmap", top, d.ID, d.ID),
		)
	}
	device := map[string]string{"virtio": "virtio-blk-pci", "scsi": "scsi-hd", "nvme": "nvme", "ide": "ide-hd"}[d.Bus]
	if d.Bus == "scsi" {
		args = append(args, "-device", fmt.Sprintf("virtio-scsi-pci,id=%s-bus", d.ID))
		device += fmt.Sprintf(",bus=%s-bus.0", d.ID)
	}
	return append(args, "-device", options(fmt.Sprintf("%s,id=%s-dev,drive=%s,serial=%s", device, d.ID, top, d.ID), d.DeviceOptions))
}

// modules are those that the guest needs to see the disk.
func (d *Disk) modules() []string {
	return map[string][]string{
		"virtio": {"virtio_blk"}, "scsi": {"virtio_scsi", "sd_mod"}, "nvme": {"nvme"}, "ide": {"ahci", "ata_piix", "sd_mod"},
	}[d.Bus]
}

// DiskDevice is the path under which the guest knows a disk, such as /dev/vdb, found by its serial number.
func (g *Guest) DiskDevice(ctx context.Context, id string) (string, error) {
	serial := id[:min(len(id), 20)] // what virtio-blk keeps
	out, err := g.Run(ctx, `for d in /sys/block/*; do
	for f in $d/serial $d/device/serial $d/device/vpd_pg80; do
		[ -r $f ] && [ "$(tr -d '\000-\040' <$f | tail -c `+fmt.Sprint(len(serial))+`)" = "`+serial+`" ] && echo /dev/${d##*/} && exit
	done
done; exit 1`)
	if err != nil {
		return "", fmt.Errorf("guestlab: no disk %q in guest %s: %w", id, g.cfg.Name, err)
	}
	return strings.TrimSpace(out), nil
}

// MakeImage makes an image file of so many bytes, all of them holes.
func MakeImage(tb testing.TB, path, format string, size int64) {
	tb.Helper()
	out, err := exec.Command("qemu-img", "create", "-q", "-f", format, path, fmt.Sprint(size)).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		SkipOrFail(tb, "qemu-img is not installed (package qemu-utils)")
	}
	if err != nil {
		tb.Fatalf("qemu-img: %v: %s", err, out)
	}
}

// MakeFS makes a raw image of so many bytes with a file system of the ext2 family on it. The arguments are mke2fs's own;
// what it says of the image's identity (UUID, hash seed) is random unless they tell.
func MakeFS(tb testing.TB, path string, size int64, args ...string) {
	tb.Helper()
	err := MakeExt(path, size, args...)
	if errors.Is(err, ErrMissing) {
		SkipOrFail(tb, err.Error())
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// MakeExt is MakeFS outside of tests.
func MakeExt(path string, size int64, args ...string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs" // where Debian has it, outside of a plain user's PATH
	}
	out, err := exec.Command(mke2fs, append(slices.Concat([]string{"-q", "-F"}, args), path)...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("guestlab: program mke2fs (package e2fsprogs): %w", ErrMissing)
	}
	if err != nil {
		return fmt.Errorf("guestlab: mke2fs %q: %w: %s", args, err, out)
	}
	return nil
}
