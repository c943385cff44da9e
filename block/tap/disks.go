package tap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"vmscope/internal/qmp"
	"vmscope/vm/qemu"
)

// Disk is a disk of a running machine. All strings come from its command line or its manager.
type Disk struct {
	Name     string // as a Linux guest would call it: "vda", "sdb", "nvme0n1"; a guess by the kind and order of devices
	ID       string // of the device or drive; "" if nobody gave it one
	Node     string // block node that the guest's device uses
	QDev     string // path of the device in QEMU's object tree
	Format   string // of the image: "raw", "qcow2", …
	File     string // what is below, as QEMU writes it
	Size     int64  // bytes, as the guest sees it
	ReadOnly bool

	kind     kind
	plain    bool // File is the path of an image that is read as it lies there
	threaded bool // an iothread serves it
}

func (d Disk) String() string {
	if d.ID == "" || d.ID == d.Name {
		return fmt.Sprintf("disk %q", d.Name)
	}
	return fmt.Sprintf("disk %q (%q)", d.Name, d.ID)
}

// ErrNoDisk says that a machine has no such disk.
var ErrNoDisk = errors.New("no such disk")

// Disks lists the disks of a running QEMU (a name, a PID or a QMP socket's path, as of qemu.Find) that hold a medium.
// CD-ROMs and floppy disks are among them.
func Disks(ctx context.Context, target string) ([]Disk, error) {
	p, err := qemu.Find(target)
	if err != nil {
		return nil, err
	}
	m, err := p.Monitor(ctx)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	defer m.Close()
	all, err := disks(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	return all, nil
}

// disks asks a monitor.
func disks(ctx context.Context, m qmp.Monitor) ([]Disk, error) {
	var reply []blockInfo
	if err := qmp.Query(ctx, m, "query-block", nil, &reply); err != nil {
		return nil, err
	}
	types := map[string]string{}
	for _, b := range reply {
		if path := device(b.QDev); path != "" {
			types[b.QDev], _ = property(ctx, m, path, "type")
		}
	}
	all := list(reply, types)
	return all, threads(ctx, m, all)
}

// property reads a text of QEMU's object tree.
func property(ctx context.Context, m qmp.Monitor, path, name string) (string, error) {
	var s string
	err := qmp.Query(ctx, m, "qom-get", map[string]string{"path": path, "property": name}, &s)
	return s, err
}

// threads finds the disks that a thread of their own serves: see mirror.export. Where it cannot be told, it is so.
func threads(ctx context.Context, m qmp.Monitor, all []Disk) error {
	var list []struct{}
	if err := qmp.Query(ctx, m, "query-iothreads", nil, &list); err != nil || len(list) == 0 {
		return err
	}
	for i := range all {
		d := &all[i]
		thread, err := property(ctx, m, d.QDev, "iothread") // of virtio-blk
		if err != nil {
			var bus string
			if bus, err = property(ctx, m, device(d.QDev), "parent_bus"); err == nil {
				// A SCSI disk's is its controller's, which IDE and NVMe have not.
				if thread, err = property(ctx, m, path.Dir(bus), "iothread"); err != nil && strings.Contains(err.Error(), "not found") {
					err = nil
				}
			}
		}
		d.threaded = thread != "" || err != nil
	}
	return nil
}

// blockInfo is what is used of QEMU's BlockInfo (qapi/block-core.json).
type blockInfo struct {
	Device   string `json:"device"`
	QDev     string `json:"qdev"`
	Inserted *struct {
		Node  string `json:"node-name"`
		Drv   string `json:"drv"`
		File  string `json:"file"`
		RO    bool   `json:"ro"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	} `json:"inserted"`
}

// device gives the path of a device's object: of virtio disks query-block names a part of it, of some the id. "" if there is
// none.
func device(qdev string) string {
	if qdev != "" && !strings.HasPrefix(qdev, "/") {
		return peripheral + qdev
	}
	return strings.TrimSuffix(qdev, "/virtio-backend")
}

// peripheral is where devices with an id are.
const peripheral = "/machine/peripheral/"

// list makes disks of an answer; types are the devices' types by their path.
func list(reply []blockInfo, types map[string]string) []Disk {
	var out []Disk
	taken := map[string]bool{}
	for _, b := range reply {
		if b.Inserted == nil || b.Inserted.Node == "" || b.Inserted.Image.Size <= 0 {
			continue
		}
		d := Disk{
			Node: b.Inserted.Node, QDev: b.QDev, Format: b.Inserted.Drv, File: file(b.Inserted.File),
			Size: b.Inserted.Image.Size, ReadOnly: b.Inserted.RO,
		}
		if id, ok := strings.CutPrefix(device(b.QDev), peripheral); ok && !strings.Contains(id, "/") {
			d.ID = id
		}
		switch d.Format {
		case "file", "host_device": // with no format's driver above: so does libvirt from 10 on
			d.Format = "raw"
		}
		// QEMU gives a path only where that tells all: no offset, for one.
		d.plain = d.Format == "raw" && strings.HasPrefix(b.Inserted.File, "/")
		if d.ID == "" {
			d.ID = b.Device
		}
		d.kind = kindOf(types[b.QDev], b.QDev)
		d.Name = d.kind.name(taken)
		out = append(out, d)
	}
	return out
}

// kind is how Linux begins the name of a disk.
type kind string

// kindOf tells it by a device's type, or by its path.
func kindOf(typ, qdev string) kind {
	switch {
	case strings.HasSuffix(typ, "-cd"):
		return "sr"
	case strings.Contains(typ, "floppy"):
		return "fd"
	case strings.HasPrefix(typ, "virtio-blk"), strings.HasPrefix(typ, "vhost-user-blk"), strings.HasSuffix(qdev, "/virtio-backend"):
		return "vd"
	case strings.HasPrefix(typ, "nvme"):
		return "nvme"
	}
	return "sd"
}

// name names a disk as Linux would, if its devices come in the order in which they are named: the first name that is free. It
// is taken then.
func (k kind) name(taken map[string]bool) string {
	for n := 0; ; n++ {
		name := string(k)
		switch k {
		case "nvme":
			name += strconv.Itoa(n) + "n1"
		case "sr", "fd":
			name += strconv.Itoa(n)
		default:
			name += letters(n)
		}
		if !taken[name] {
			taken[name] = true
			return name
		}
	}
}

// letters counts as Linux does: a, …, z, aa, ab, …
func letters(n int) string {
	s := ""
	for n++; n > 0; n = (n - 1) / 26 {
		s = string(rune('a'+(n-1)%26)) + s
	}
	return s
}

// file makes a path of what QEMU says of a node's file: a JSON description where a path does not tell all.
func file(s string) string {
	j, ok := strings.CutPrefix(s, "json:")
	if !ok {
		return s
	}
	var d struct {
		Filename string `json:"filename"`
		File     struct {
			Filename string `json:"filename"`
		} `json:"file"`
	}
	if json.Unmarshal([]byte(j), &d) != nil {
		return s
	}
	for _, f := range []string{d.Filename, d.File.Filename} {
		if f != "" {
			return f
		}
	}
	return s
}

// choose finds a disk by its id, node, device path, or guessed name, in this order. "" is the only one that can be
// written.
func choose(all []Disk, name string) (Disk, error) {
	if name == "" {
		var w []Disk
		for _, d := range all {
			if !d.ReadOnly {
				w = append(w, d)
			}
		}
		if len(w) == 1 {
			return w[0], nil
		}
		return Disk{}, fmt.Errorf("%w: which of %d? %s", ErrNoDisk, len(w), names(w))
	}
	for _, key := range []func(Disk) string{
		func(d Disk) string { return d.ID }, func(d Disk) string { return d.Node }, func(d Disk) string { return d.QDev },
		func(d Disk) string { return d.Name }, func(d Disk) string { return "/dev/" + d.Name },
	} {
		if i := slices.IndexFunc(all, func(d Disk) bool { return key(d) == name }); i >= 0 {
			return all[i], nil
		}
	}
	return Disk{}, fmt.Errorf("%w: %q; there are: %s", ErrNoDisk, name, names(all))
}

func names(all []Disk) string {
	if len(all) == 0 {
		return "none"
	}
	var s []string
	for _, d := range all {
		s = append(s, d.String())
	}
	return strings.Join(s, ", ")
}
