package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/kernel"
)

// statRow is what stat prints of one file.
type statRow struct {
	fileRow
	Generation uint32     `json:"generation"`
	Blocks     uint64     `json:"blocks"`
	Atime      time.Time  `json:"atime,omitzero"`
	Ctime      time.Time  `json:"ctime,omitzero"`
	Birth      *time.Time `json:"birth,omitempty"`
	Flags      []string   `json:"flags,omitempty"`
	Xattrs     []xattrRow `json:"xattrs,omitempty"`
	Disk       string     `json:"disk"`
	FS         string     `json:"fs"`
}

type xattrRow struct {
	Name  kernel.Text `json:"name"`
	Value string      `json:"value"` // hexadecimal

	value []byte
}

// flagNames are the flags of an inode that are worth a word.
var flagNames = []struct {
	flag uint32
	name string
}{
	{ext4.FlagImmutable, "immutable"}, {ext4.FlagAppend, "append"}, {ext4.FlagEncrypt, "encrypted"}, {ext4.FlagIndex, "indexed"},
	{ext4.FlagExtents, "extents"}, {ext4.FlagVerity, "verity"}, {ext4.FlagInlineData, "inline"}, {ext4.FlagCasefold, "casefold"},
}

func (a *app) statCmd() *cobra.Command {
	var follow bool
	c := a.files("stat TARGET PATH...", "Print all that a disk says of a file, extended attributes too",
		`stat prints what the inode of a file on the disk of a VM, which may be running,
or in an image says, with its extended attributes. The journal is applied in
memory; nothing is written.`,
		`  vmscope stat web1 /etc/shadow
  vmscope stat disk.img --json /usr/bin/ping | jq '.xattrs'`,
		func(v *vmscope.FileSystem, _ *cobra.Command, paths []string) error {
			var failed failures
			for i, p := range paths {
				find := v.Lstat
				if follow {
					find = v.Stat
				}
				in, err := find(p)
				if err != nil {
					failed.add(err)
					continue
				}
				r := statOf(v, p, &in)
				for _, m := range r.Missing {
					failed.add(fmt.Errorf("%s: %s", kernel.Text(p), m))
				}
				if a.json {
					err = a.object(r)
				} else {
					err = a.printStat(r, i > 0)
				}
				if err != nil {
					return err
				}
			}
			return failed.err()
		}, true)
	c.Flags().BoolVarP(&follow, "dereference", "L", false, "follow a symbolic link")
	return c
}

func statOf(v *vmscope.FileSystem, p string, in *ext4.Inode) statRow {
	r := statRow{fileRow: fileOf(v.Volume, p, p, in), Generation: in.Generation, Blocks: in.Blocks, Atime: in.Atime.Time(), Ctime: in.Ctime.Time(),
		Disk: v.Disk, FS: v.Where.Name}
	if in.Crtime != (ext4.Timestamp{}) {
		t := in.Crtime.Time()
		r.Birth = &t
	}
	for _, f := range flagNames {
		if in.Flags&f.flag != 0 {
			r.Flags = append(r.Flags, f.name)
		}
	}
	list, err := v.Xattrs(in)
	if err != nil {
		r.Missing = append(r.Missing, err.Error())
	}
	if !in.ChecksumOK {
		r.Missing = append(r.Missing, "the inode's checksum is wrong")
	}
	for _, x := range list {
		r.Xattrs = append(r.Xattrs, xattrRow{kernel.Text(x.Name), hex.EncodeToString(x.Value), x.Value})
	}
	return r
}

// printStat prints it for people.
func (a *app) printStat(r statRow, more bool) error {
	const layout = "2006-01-02 15:04:05.000000000 UTC"
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%12s  %s\n", name, fmt.Sprintf(format, args...))
	}
	if more {
		b.WriteByte('\n')
	}
	if r.Target != nil {
		line("path", "%s -> %s", r.Path, r.Target)
	} else {
		line("path", "%s", r.Path)
	}
	line("kind", "%s", r.Kind)
	if r.Device != "" {
		line("device", "%s", r.Device)
	}
	line("size", "%d (%d blocks of 512 bytes)", r.Size, r.Blocks)
	line("mode", "%04o %s", r.Mode, permissions(r.mode))
	line("uid, gid", "%d, %d", r.UID, r.GID)
	line("inode", "%d, generation %d", r.Inode, r.Generation)
	line("links", "%d", r.Nlink)
	line("accessed", "%s", r.Atime.Format(layout))
	line("modified", "%s", r.Mtime.Format(layout))
	line("changed", "%s", r.Ctime.Format(layout))
	if r.Birth != nil {
		line("born", "%s", r.Birth.Format(layout))
	}
	if len(r.Flags) > 0 {
		line("flags", "%s", strings.Join(r.Flags, " "))
	}
	for _, x := range r.Xattrs {
		line("attribute", "%s=%s", x.Name, attribute(x.value))
	}
	line("on", "%s of disk %s", r.FS, r.Disk)
	_, err := fmt.Fprint(a.out, b.String())
	return err
}

// attribute prints a value as getfattr does: text in quotes, all else in hex.
func attribute(v []byte) string {
	if utf8.Valid(v) && len(v) < 1<<12 {
		s := strings.TrimSuffix(string(v), "\x00")
		if kernel.Text(s).String() == s {
			return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
		}
	}
	const most = 256
	if len(v) > most {
		return fmt.Sprintf("0x%x… (%d bytes)", v[:most], len(v))
	}
	return fmt.Sprintf("0x%x", v)
}

// fileTypes are what find --type takes.
var fileTypes = map[string]event.Kind{
	"f": event.File, "d": event.Dir, "l": event.Lnk, "c": event.CharDev, "b": event.BlockDev, "p": event.FIFO, "s": event.Socket,
}

func (a *app) findCmd() *cobra.Command {
	var name, kind string
	c := a.files("find TARGET [PATH]...", "List all files below a path of a disk",
		`find lists a path and all that is below it, one path a line, on the disk of a VM,
which may be running, or in an image. Symbolic links are not followed. The
journal is applied in memory; nothing is written.`,
		`  vmscope find web1 /etc --name '*.conf' --type f
  vmscope find disk.img --json | jq -r 'select(.mode/2048%2==1).path'    # set-uid programs`,
		func(v *vmscope.FileSystem, cmd *cobra.Command, paths []string) error {
			var failed failures
			for _, p := range paths {
				err := v.Walk(p, func(at string, in *ext4.Inode, err error) error {
					if cerr := cmd.Context().Err(); cerr != nil {
						return cerr
					}
					if err != nil {
						failed.add(fmt.Errorf("%s: %w", kernel.Text(at), err))
						return nil
					}
					if k, _ := in.Kind(); kind != "" && k != fileTypes[kind] {
						return nil
					}
					if ok, _ := path.Match(name, path.Base(at)); name != "" && !ok {
						return nil
					}
					return lines(a, []fileRow{fileOf(v.Volume, at, at, in)}, nil, func(r fileRow) string { return r.Path.String() })
				})
				if pe := (*fs.PathError)(nil); err != nil && !errors.As(err, &pe) {
					return err
				}
				failed.add(err)
			}
			return failed.err()
		}, false)
	f := c.Flags()
	f.StringVar(&name, "name", "", "only names that match this pattern (*, ?, [a-z])")
	f.StringVar(&kind, "type", "", "only files (f), directories (d), links (l), devices (c, b), FIFOs (p), sockets (s)")
	_ = c.RegisterFlagCompletionFunc("type", fixed("f", "d", "l", "c", "b", "p", "s"))
	c.PreRunE = func(*cobra.Command, []string) error {
		if _, ok := fileTypes[kind]; kind != "" && !ok {
			return fmt.Errorf("--type %q: it is f, d, l, c, b, p or s", kind)
		}
		if _, err := path.Match(name, "x"); err != nil {
			return fmt.Errorf("--name %q: %w", name, err)
		}
		return nil
	}
	return c
}
