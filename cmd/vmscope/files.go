package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/kernel"
)

// fileRow is one file, as ls and find print it.
type fileRow struct {
	Path   kernel.Text  `json:"path"`
	Inode  uint32       `json:"inode"`
	Kind   event.Kind   `json:"kind,omitempty"`
	Mode   uint32       `json:"mode"`
	UID    uint32       `json:"uid"`
	GID    uint32       `json:"gid"`
	Size   int64        `json:"size"`
	Nlink  uint32       `json:"nlink"`
	Mtime  time.Time    `json:"mtime,omitzero"`
	Target *kernel.Text `json:"target,omitempty"`
	Device string       `json:"device,omitempty"`
	// Missing says what could not be read of it.
	Missing []string `json:"missing,omitempty"`

	name string      // the last part of the path
	mode fs.FileMode // of an inode that could be read
}

// fileOf makes a row of an inode.
func fileOf(v *ext4.Volume, p, name string, in *ext4.Inode) fileRow {
	kind, _ := in.Kind()
	r := fileRow{Path: kernel.Text(p), Inode: in.Number, Kind: kind, Mode: uint32(in.Mode) & 0o7777, UID: in.UID, GID: in.GID, Size: in.Size, Nlink: in.Links,
		Mtime: in.Mtime.Time(), name: name, mode: in.FileMode()}
	switch kind {
	case event.Lnk:
		target, err := v.Target(in)
		if err != nil {
			r.Missing = append(r.Missing, err.Error())
			break
		}
		r.Target = (*kernel.Text)(&target)
	case event.CharDev, event.BlockDev:
		r.Device = device(in)
	}
	return r
}

// lost is a row of what could not be read.
func lost(p, name string, ino uint32, err error) fileRow {
	return fileRow{Path: kernel.Text(p), Inode: ino, Missing: []string{err.Error()}, name: name, mode: fs.ModeIrregular}
}

// device prints a device's numbers.
func device(in *ext4.Inode) string {
	n := in.Rdev()
	return fmt.Sprintf("%d:%d", n>>32, uint32(n))
}

// permissions prints a mode as ls does.
func permissions(m fs.FileMode) string {
	b := []byte("?---------")
	for i, c := range []struct {
		bit  fs.FileMode
		char byte
	}{{fs.ModeDir, 'd'}, {fs.ModeSymlink, 'l'}, {fs.ModeNamedPipe, 'p'}, {fs.ModeSocket, 's'}, {fs.ModeCharDevice, 'c'}, {fs.ModeDevice, 'b'}} {
		if i == 0 && m.IsRegular() {
			b[0] = '-'
		}
		if m&c.bit != 0 {
			b[0] = c.char
			break
		}
	}
	for i, c := range "rwxrwxrwx" {
		if m&(0o400>>i) != 0 {
			b[1+i] = byte(c)
		}
	}
	for _, s := range []struct {
		bit      fs.FileMode
		at       int
		yes, not byte
	}{{fs.ModeSetuid, 3, 's', 'S'}, {fs.ModeSetgid, 6, 's', 'S'}, {fs.ModeSticky, 9, 't', 'T'}} {
		if m&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.yes
			} else {
				b[s.at] = s.not
			}
		}
	}
	return string(b)
}

// failures counts what could not be read, and keeps the first.
type failures struct {
	first error
	n     int
}

func (f *failures) add(err error) {
	if err == nil {
		return
	}
	if f.n++; f.n == 1 {
		f.first = err
	}
}

func (f *failures) err() error {
	if f.n > 1 {
		return fmt.Errorf("%w (and %d more that could not be read)", f.first, f.n-1)
	}
	return f.first
}

// files makes a command that looks at paths of a file system.
func (a *app) files(use, short, long, example string, paths func(*vmscope.FileSystem, *cobra.Command, []string) error, need bool) *cobra.Command {
	var where fileSystem
	check := targetAnd(-1)
	if need {
		check = targetAnd(-1, "PATH")
	}
	c := &cobra.Command{
		Use: use, Short: short, Long: long + "\n\n" + diskTargets, Example: example, Args: check, ValidArgsFunction: a.completePath(&where),
		RunE: func(cmd *cobra.Command, args []string) error {
			whole := cmd.Context()
			ctx, stop := untilHangup(whole)
			defer stop()
			cmd.SetContext(ctx)
			v, err := where.open(cmd, args[0], a.options())
			if err != nil {
				return err
			}
			// Also if we hang in writing to a pipe that nobody reads: nothing stays in the machine.
			defer context.AfterFunc(ctx, func() { v.Close() })()
			if err := v.Recovery().Err; err != nil {
				a.note = oneLine(fmt.Errorf("%s: the journal could be applied only in part: %w", v.Where.Name, err))
			}
			list := args[1:]
			if len(list) == 0 {
				list = []string{"/"}
			}
			err = elsewhere(ctx, v, paths(v, cmd, list))
			err = errors.Join(err, v.Close())
			switch {
			case whole.Err() != nil:
				return whole.Err() // what came of closing it is not worth a word
			case ctx.Err() != nil:
				return errors.New("interrupted")
			case errors.Is(err, syscall.EPIPE):
				return errQuiet
			}
			return err
		},
	}
	where.flags(c)
	return c
}

// elsewhere adds to the error of a path that begins where the guest has the file system mounted what it is called here.
func elsewhere(ctx context.Context, v *vmscope.FileSystem, err error) error {
	var p *fs.PathError
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &p) {
		return err
	}
	at, merr := v.MountedAt(ctx)
	below, inside := strings.CutPrefix(path.Clean("/"+p.Path), at)
	if merr != nil || at == "" || at == "/" || !inside || below != "" && below[0] != '/' {
		return err
	}
	return fmt.Errorf("%w: paths here are those of %s, which the guest has mounted at %s: try %s", err, v.Where.Name, kernel.Text(at), kernel.Text(path.Join("/", below)))
}

// untilHangup makes what would end us at once end the command in order: a look at a
// running machine has something there to remove.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	signal.Ignore(syscall.SIGPIPE)
	if signal.Ignored(syscall.SIGHUP) { // nohup
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

func (a *app) lsCmd() *cobra.Command {
	var o listing
	c := a.files("ls TARGET [PATH]...", "List files on a disk, as the guest would find them",
		`ls lists directories of a file system (ext2, ext3, ext4) on the disk of a VM,
which may be running, or in an image. The journal is applied in memory; nothing
is written.`,
		`  vmscope ls web1 /etc
  vmscope ls web1 --fs vda1 -lR /boot
  vmscope ls disk.img --json / | jq -r 'select(.kind=="file").path'`,
		func(v *vmscope.FileSystem, cmd *cobra.Command, paths []string) error {
			o.app, o.ctx, o.v = a, cmd.Context(), v
			return o.all(paths)
		}, false)
	f := c.Flags()
	f.BoolVarP(&o.long, "long", "l", false, "mode, links, owner, size and time")
	f.BoolVarP(&o.hidden, "all", "a", false, "names that begin with a dot, too")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "directories in directories, too")
	f.BoolVarP(&o.directory, "directory", "d", false, "a directory itself, not what is in it")
	return c
}

// listing is one ls.
type listing struct {
	long, hidden, recursive, directory bool

	app    *app
	ctx    context.Context
	v      *vmscope.FileSystem
	failed failures
	begun  bool
	below  int // directories that are still to be listed
}

// all lists several paths: files first, then each directory.
func (l *listing) all(paths []string) error {
	var files []fileRow
	type dir struct {
		path string
		in   ext4.Inode
	}
	var dirs []dir
	for _, p := range paths {
		// A link is followed, but where it is what is asked for.
		stat := l.v.Stat
		if l.long || l.directory {
			stat = l.v.Lstat
		}
		in, err := stat(p)
		if errors.Is(err, fs.ErrNotExist) && !l.long {
			in, err = l.v.Lstat(p) // a link that leads nowhere
		}
		switch {
		case err != nil:
			l.failed.add(err)
		case in.IsDir() && !l.directory:
			dirs = append(dirs, dir{p, in})
		default:
			files = append(files, fileOf(l.v.Volume, p, p, &in))
		}
	}
	if err := l.print("", files); err != nil {
		return err
	}
	for _, d := range dirs {
		title := ""
		if len(paths) > 1 || l.recursive {
			title = d.path
		}
		if err := l.dir(d.path, title, &d.in, map[uint32]bool{}); err != nil {
			return err
		}
	}
	return l.failed.err()
}

// dir lists a directory, and those in it if asked. above are those that it lies in.
func (l *listing) dir(p, title string, in *ext4.Inode, above map[uint32]bool) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	type subdir struct {
		path string
		in   ext4.Inode
	}
	var list []fileRow
	var below []subdir
	portions := 0
	var wrong error // of the output
	flush := func() bool {
		slices.SortStableFunc(list, func(a, b fileRow) int { return strings.Compare(a.name, b.name) })
		switch portions++; portions {
		case 1:
			wrong = l.print(title, list)
		case 2:
			l.app.note = fmt.Sprintf("%s: more than %d names: they are sorted in portions", kernel.Text(p), maxSorted)
			fallthrough
		default:
			wrong = l.print("", list)
		}
		list = list[:0]
		return wrong == nil
	}
	err := l.v.Entries(in, func(e ext4.Entry) bool {
		if l.ctx.Err() != nil {
			return false
		}
		if e.Name[:min(1, len(e.Name))] == "." && !l.hidden {
			return true
		}
		full := path.Join("/", p) + "/" + e.Name
		if path.Join("/", p) == "/" {
			full = "/" + e.Name
		}
		in, err := l.v.Inode(e.Ino)
		if err != nil {
			l.failed.add(fmt.Errorf("%s: %w", kernel.Text(full), err))
			list = append(list, lost(full, e.Name, e.Ino, err))
		} else {
			list = append(list, fileOf(l.v.Volume, full, e.Name, &in))
		}
		switch {
		case err != nil || !in.IsDir() || !l.recursive:
		case l.below < maxSorted:
			below = append(below, subdir{full, in})
			l.below++
		default:
			l.failed.add(fmt.Errorf("%s: too many directories to be listed; 'vmscope find' goes through all", kernel.Text(full)))
		}
		return len(list) < maxSorted || flush()
	})
	if err != nil {
		l.failed.add(fmt.Errorf("%s: %w", kernel.Text(p), err))
	}
	defer func() { l.below -= len(below) }()
	if wrong == nil && (len(list) > 0 || portions == 0) {
		flush()
	}
	if wrong != nil {
		return wrong
	}
	list = nil // what is below takes room of its own
	above[in.Number] = true
	defer delete(above, in.Number)
	slices.SortStableFunc(below, func(a, b subdir) int { return strings.Compare(a.path, b.path) })
	for i := range below {
		d := &below[i]
		if above[d.in.Number] || len(above) > maxDepth {
			l.failed.add(fmt.Errorf("%s: a directory in itself", kernel.Text(d.path)))
			continue
		}
		if err := l.dir(d.path, d.path, &d.in, above); err != nil {
			return err
		}
	}
	return nil
}

// maxSorted is how many names are held to be sorted, and how many directories to be listed: a disk that lies has as many as it
// likes.
const maxSorted = 1 << 18

// maxDepth bounds how deep directories are followed.
const maxDepth = 4096

// print prints what one directory holds.
func (l *listing) print(title string, list []fileRow) error {
	a := l.app
	if a.json {
		return lines(a, list, nil, nil)
	}
	if title != "" {
		gap := ""
		if l.begun {
			gap = "\n"
		}
		if _, err := fmt.Fprintf(a.out, "%s%s:\n", gap, kernel.Text(title)); err != nil {
			return err
		}
	}
	l.begun = l.begun || title != "" || len(list) > 0
	if !l.long {
		return lines(a, list, nil, func(r fileRow) string { return kernel.Text(r.name).String() })
	}
	if len(list) == 0 {
		return nil
	}
	t := a.table(nil)
	for _, r := range list {
		t.AppendRow(longRow(r))
	}
	t.Render()
	return nil
}

// longRow is a line of ls -l.
func longRow(r fileRow) []any {
	what := strconv.FormatInt(r.Size, 10)
	if r.Device != "" {
		what = r.Device
	}
	name := kernel.Text(r.name).String()
	if r.Target != nil {
		name += " -> " + r.Target.String()
	}
	when := ""
	if !r.Mtime.IsZero() {
		when = r.Mtime.Format("2006-01-02 15:04:05")
	}
	return []any{permissions(r.mode), r.Nlink, r.UID, r.GID, what, when, name}
}

func (a *app) catCmd() *cobra.Command {
	return a.files("cat TARGET PATH...", "Print files of a disk as they are",
		`cat prints the bytes of files on the disk of a VM, which may be running, or in an
image, as they are: they were written by the guest, and a terminal may act on
them. The journal is applied in memory; nothing is written.`,
		`  vmscope cat web1 /etc/passwd
  vmscope cat disk.img --fs LABEL=root /var/log/syslog | tail`,
		func(v *vmscope.FileSystem, cmd *cobra.Command, paths []string) error {
			for _, p := range paths {
				f, err := v.OpenFile(p)
				if err != nil {
					return err
				}
				r := contextReader{cmd.Context(), io.NewSectionReader(f, 0, f.Size())}
				if _, err := io.CopyBuffer(onlyWriter{a.out}, r, make([]byte, 256<<10)); err != nil {
					return fmt.Errorf("%s: %w", kernel.Text(p), err)
				}
			}
			return nil
		}, true)
}

// contextReader reads until a context ends: a file of holes can be very long.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// onlyWriter hides what else a writer can do, so that CopyBuffer takes our buffer.
type onlyWriter struct{ io.Writer }
