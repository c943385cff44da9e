package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/block"
	"vmscope/block/part"
	"vmscope/kernel"
)

// diskRow is one line of disks: a disk, a partition, or a logical volume.
type diskRow struct {
	Name string    `json:"name"`
	Kind part.Kind `json:"kind"`
	Disk string    `json:"disk,omitempty"`
	Size int64     `json:"size"`

	// Of a disk.
	ID         kernel.Text `json:"id,omitempty"`
	Format     kernel.Text `json:"format,omitempty"`
	File       kernel.Text `json:"file,omitempty"`
	ReadOnly   bool        `json:"readonly,omitempty"`
	Table      string      `json:"table,omitempty"`
	TableID    string      `json:"table_id,omitempty"`
	SectorSize int         `json:"sector_size,omitempty"`

	// Of a partition.
	Number    int         `json:"number,omitempty"`
	PartType  string      `json:"part_type,omitempty"`
	PartUUID  string      `json:"part_uuid,omitempty"`
	PartLabel kernel.Text `json:"part_label,omitempty"`
	// Of a logical volume.
	LVUUID kernel.Text `json:"lv_uuid,omitempty"`

	Content string      `json:"content,omitempty"`
	Version string      `json:"version,omitempty"`
	Label   kernel.Text `json:"label,omitempty"`
	UUID    kernel.Text `json:"uuid,omitempty"`

	Unmapped kernel.Text `json:"unmapped,omitempty"`
	Segments []segment   `json:"segments,omitempty"`
}

// segment is a piece of a volume.
type segment struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Stripe int64 `json:"stripe,omitempty"`
	On     []on  `json:"on,omitempty"`
}

type on struct {
	Disk   string `json:"disk,omitempty"`
	Offset int64  `json:"offset"`
}

func (a *app) disksCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "disks TARGET",
		Short: "List the disks, and the partitions and volumes on them",
		Long: `disks lists the disks of a running VM, or those in a raw image, a block device
or an NBD export, with their partitions (MBR, GPT), LVM2 volumes, and what lies
in each. The names are those that Linux would give, if it finds the disks in the
order of the machine's.

` + diskTargets,
		Example: `  vmscope disks web1
  vmscope disks disk.img
  vmscope disks 'nbd+unix:///?socket=/run/export.sock' --json | jq -r 'select(.content=="ext4").name'`,
		Args: targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilHangup(cmd.Context())
			defer stop()
			cmd.SetContext(ctx)
			disks, err := vmscope.OpenDisks(cmd.Context(), args[0], a.options()...)
			if err != nil {
				return err
			}
			l, err := vmscope.ScanDisks(cmd.Context(), disks)
			if err != nil {
				return errors.Join(err, vmscope.CloseDisks(disks))
			}
			err = errors.Join(append(l.Problems, vmscope.CloseDisks(disks))...)
			return rows(a, diskRows(disks, l), err, []any{"name", "size", "type", "content", "label", "uuid", "note"}, func(r diskRow) []any {
				content := r.Content
				if r.Kind == part.WholeDisk && r.Table != "" && content == "" {
					content = r.Table
				}
				name := r.Name
				if r.Kind == part.Partition {
					name = "  " + name
				}
				return []any{name, size(uint64(r.Size)), r.Kind, content, r.Label, r.UUID, diskNote(r)}
			})
		},
	}
}

// diskTargets says what a target of the commands for disks is.
const diskTargets = `A TARGET is a running VM (NAME, qemu:NAME, qemu:PID, libvirt:///NAME, the path
of its QMP socket), a raw image or a block device (PATH, file:PATH), or an NBD export
(nbd+unix:///EXPORT?socket=PATH, nbd://HOST/EXPORT; "qemu-nbd -r -k SOCKET"
makes one of any image format). An image is raw, whatever it looks like: a guest
could make its disk look like any format.`

// diskNote says what a table has no other column for.
func diskNote(r diskRow) string {
	switch {
	case r.Unmapped != "":
		return r.Unmapped.String()
	case r.Kind == part.WholeDisk:
		return r.Format.String() + " " + r.File.String()
	case r.PartLabel != "":
		return r.PartLabel.String()
	}
	return ""
}

// diskRows lists each disk, with its partitions behind it, and then the logical
// volumes.
func diskRows(disks []*vmscope.Disk, l *part.Layout) []diskRow {
	var out []diskRow
	for i, d := range disks {
		t := l.Disks[i]
		r := diskRow{Name: d.Name, Kind: part.WholeDisk, Size: t.Size, ID: kernel.Text(d.ID), Format: kernel.Text(d.Format), File: kernel.Text(d.File),
			ReadOnly: d.ReadOnly, Table: t.Type, TableID: t.ID, SectorSize: t.SectorSize}
		if v, ok := l.Lookup(d.Name); ok && v.Kind == part.WholeDisk && (t.Type == "" || v.Known()) {
			content(&r, v)
		}
		out = append(out, r)
		for k := range l.Volumes {
			if v := &l.Volumes[k]; v.Disk == i && v.Kind == part.Partition {
				out = append(out, volumeRow(disks, v))
			}
		}
	}
	for k := range l.Volumes {
		if v := &l.Volumes[k]; v.Kind == part.Logical {
			out = append(out, volumeRow(disks, v))
		}
	}
	return out
}

func content(r *diskRow, v *part.Volume) {
	r.Content, r.Version, r.Label, r.UUID = v.Type, v.Version, kernel.Text(v.Label), kernel.Text(v.UUID)
}

func volumeRow(disks []*vmscope.Disk, v *part.Volume) diskRow {
	r := diskRow{Name: v.Name, Kind: v.Kind, Size: v.Size, Number: v.Number, PartType: v.PartType, PartUUID: v.PartUUID, PartLabel: kernel.Text(v.PartLabel),
		LVUUID: kernel.Text(v.LVUUID), Unmapped: kernel.Text(v.Unmapped)}
	if v.Disk >= 0 {
		r.Disk = disks[v.Disk].Name
	}
	content(&r, v)
	for _, s := range v.Segments {
		r.Segments = append(r.Segments, segmentRow(disks, s))
	}
	return r
}

func segmentRow(disks []*vmscope.Disk, s block.Segment) segment {
	out := segment{Start: s.Start, Length: s.Len}
	if len(s.Legs) > 1 {
		out.Stripe = s.Stripe
	}
	for _, l := range s.Legs {
		o := on{Offset: l.Off}
		if l.Disk >= 0 {
			o.Disk = disks[l.Disk].Name
		}
		out.On = append(out.On, o)
	}
	return out
}

// fileSystem is what the commands that look at files share: which disk, and which
// file system on it.
type fileSystem struct {
	disk, fs string
}

func (f *fileSystem) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.disk, "disk", "", "the disk, by its name or id (where there are several)")
	c.Flags().StringVar(&f.fs, "fs", "", "the file system: vda1, vg0/root, its UUID or its label (where there are several)")
	_ = c.RegisterFlagCompletionFunc("disk", completeDisks(func(r diskRow) []string {
		if r.Kind == part.WholeDisk {
			return []string{r.Name, string(r.ID)}
		}
		return nil
	}))
	_ = c.RegisterFlagCompletionFunc("fs", completeDisks(fileSystemWords))
}

// fileSystemWords are the names of a file system that can be read.
func fileSystemWords(r diskRow) []string {
	if r.Content == "ext2" || r.Content == "ext3" || r.Content == "ext4" {
		return []string{r.Name, string(r.Label), string(r.UUID)}
	}
	return nil
}

// completeDisks completes by what is on the target's disks.
func completeDisks(words func(diskRow) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		disks, err := vmscope.OpenDisks(cmd.Context(), args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer vmscope.CloseDisks(disks)
		l, err := vmscope.ScanDisks(cmd.Context(), disks)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, r := range diskRows(disks, l) {
			for _, w := range words(r) {
				if harmless(w) {
					out = append(out, w)
				}
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// open opens the file system, and says on which disk it is if it cannot.
func (f *fileSystem) open(cmd *cobra.Command, target string, opts []vmscope.Option) (*vmscope.FileSystem, error) {
	fs, err := vmscope.OpenFileSystem(cmd.Context(), target, f.disk, f.fs, opts...)
	if errors.Is(err, vmscope.ErrNoFileSystem) {
		err = fmt.Errorf("%w; 'vmscope disks %s' lists all", err, kernel.Text(target))
	}
	return fs, err
}
