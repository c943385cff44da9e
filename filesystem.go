package vmscope

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vmscope/block/part"
	"vmscope/fsinfer/ext4"
)

// FileSystem is a look at a file system on a target's disk, with its journal
// applied in memory: what the guest would find if it crashed now and started
// again. Nothing is written.
type FileSystem struct {
	*ext4.Volume
	Where part.Volume // partition or logical volume
	Disk  string      // name of the disk; of a logical volume on several, those with commas between

	disks []*Disk
}

// Close gives back what the look holds. It may be called at any time, and more
// than once, as that of a Disk.
func (f *FileSystem) Close() error {
	err := f.Volume.Close()
	return errors.Join(err, CloseDisks(f.disks))
}

// MountedAt reads from the memory of a running guest where its first process sees the file system; "" where it does not, or
// the target does not run.
func (f *FileSystem) MountedAt(ctx context.Context) (string, error) {
	if len(f.disks) == 0 || f.disks[0].machine == "" {
		return "", nil
	}
	m := newMountPoints(ctx, func(ctx context.Context) (*Guest, error) { return Open(ctx, "qemu:"+f.disks[0].machine) })
	defer m.close()
	return m.of(f.Where.Name, f.Super())
}

// ErrNoFileSystem says that a target has no such file system, or none that can
// be read.
var ErrNoFileSystem = errors.New("no such file system")

// OpenFileSystem opens a file system of target (as of OpenDisks). disk and name
// choose, if there are several: the disk's name or id, and the volume's name
// ("vda1", "vg0/root"), the UUID or the label of the file system, or the UUID or
// the label of its partition.
//
// A running guest writes on meanwhile, so a look that takes long may find parts
// that are of different moments, and says then that they contradict themselves:
// Paused avoids that.
func OpenFileSystem(ctx context.Context, target, disk, name string, opts ...Option) (*FileSystem, error) {
	disks, err := OpenDisks(ctx, target, opts...)
	if err != nil {
		return nil, err
	}
	f, err := openFileSystem(ctx, disks, disk, name)
	if err != nil {
		return nil, errors.Join(err, CloseDisks(disks))
	}
	f.disks = disks
	return f, nil
}

func openFileSystem(ctx context.Context, disks []*Disk, disk, name string) (*FileSystem, error) {
	only := -1
	if disk != "" {
		d, err := chooseDisk(disks, disk)
		if err != nil {
			return nil, err
		}
		for i := range disks {
			if disks[i] == d {
				only = i
			}
		}
	}
	l, err := ScanDisks(ctx, disks)
	if err != nil {
		return nil, err
	}
	v, err := chooseVolume(l, only, name)
	if err != nil {
		return nil, errors.Join(append([]error{err}, l.Problems...)...)
	}
	dev, err := l.Open(v)
	if err != nil {
		return nil, err
	}
	vol, err := ext4.Open(dev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	f := &FileSystem{Volume: vol, Where: *v}
	var on []string
	for i := range disks {
		if onDisk(v, i) {
			on = append(on, disks[i].Name)
		}
	}
	f.Disk = strings.Join(on, ",")
	return f, nil
}

// onDisk reports whether any part of a volume lies on a disk.
func onDisk(v *part.Volume, disk int) bool {
	for _, s := range v.Segments {
		for _, leg := range s.Legs {
			if leg.Disk == disk {
				return true
			}
		}
	}
	return v.Segments == nil && v.Disk == disk
}

// readable are the types of file systems that can be looked into.
func readable(v *part.Volume) bool {
	return (v.Type == "ext2" || v.Type == "ext3" || v.Type == "ext4") && v.Segments != nil
}

// chooseVolume finds the one volume that name means; the only file system if it
// is "". only is the disk that it is to lie on, -1 for any.
func chooseVolume(l *part.Layout, only int, name string) (*part.Volume, error) {
	var hits, others []*part.Volume
	for i := range l.Volumes {
		v := &l.Volumes[i]
		switch {
		case only >= 0 && !onDisk(v, only):
		case name != "" && v.Called(name), name == "" && readable(v):
			hits = append(hits, v)
		case v.Known():
			others = append(others, v)
		}
	}
	switch {
	case len(hits) == 1 && readable(hits[0]):
		return hits[0], nil
	case len(hits) == 1 && hits[0].Unmapped != "":
		return nil, fmt.Errorf("%w: %s cannot be read: %s", ErrNoFileSystem, hits[0].Name, hits[0].Unmapped)
	case len(hits) == 1:
		return nil, fmt.Errorf("%w: %s is %s, and what can be read is ext2, ext3 and ext4", ErrNoFileSystem, hits[0].Name, hits[0].Type)
	case len(hits) > 1:
		return nil, fmt.Errorf("%w: which of several? %s", ErrNoFileSystem, volumes(hits))
	case len(others) == 0:
		return nil, fmt.Errorf("%w: there is nothing known on the disk", ErrNoFileSystem)
	case name == "":
		return nil, fmt.Errorf("%w: none that can be read (ext2, ext3 or ext4) among %s", ErrNoFileSystem, volumes(others))
	}
	return nil, fmt.Errorf("%w: %q; there is %s", ErrNoFileSystem, name, volumes(others))
}

// volumes lists what there is to choose from, for a message.
func volumes(list []*part.Volume) string {
	const most = 20
	var out []string
	for _, v := range list[:min(len(list), most)] {
		s := v.Name + " (" + v.Type
		if v.Label != "" {
			s += fmt.Sprintf(" %q", v.Label)
		}
		out = append(out, s+")")
	}
	if len(list) > most {
		out = append(out, fmt.Sprintf("and %d more", len(list)-most))
	}
	return strings.Join(out, ", ")
}
