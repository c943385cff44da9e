package ext4

import (
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"
)

// FS is the volume in the form of io/fs, with fs.ReadDirFS, fs.StatFS and fs.ReadLinkFS. io/fs knows paths of UTF-8 only:
// what bears another name is listed but cannot be opened so. Sys of an fs.FileInfo is the *Inode.
func (v *Volume) FS() fs.FS { return volumeFS{v} }

type volumeFS struct{ v *Volume }

var (
	_ fs.ReadDirFS  = volumeFS{}
	_ fs.StatFS     = volumeFS{}
	_ fs.ReadLinkFS = volumeFS{}
)

func (f volumeFS) find(op, name string, follow bool) (Inode, error) {
	if !fs.ValidPath(name) {
		return Inode{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return f.v.find(op, name, follow)
}

// Open opens a file or a directory. Of a device, and of what is encrypted, only Stat works.
func (f volumeFS) Open(name string) (fs.File, error) {
	in, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	of := openFile{info: info{name: baseName(name), in: in}, path: name}
	if in.IsDir() {
		return &openDir{openFile: of, fs: f}, nil
	}
	file, err := f.v.OpenInode(&in)
	if err != nil {
		of.err = &fs.PathError{Op: "read", Path: name, Err: err}
		return &of, nil
	}
	of.r = io.NewSectionReader(file, 0, file.Size())
	return &of, nil
}

func (f volumeFS) Stat(name string) (fs.FileInfo, error) {
	in, err := f.find("stat", name, true)
	return infoOf(name, in, err)
}

func (f volumeFS) Lstat(name string) (fs.FileInfo, error) {
	in, err := f.find("lstat", name, false)
	return infoOf(name, in, err)
}

func (f volumeFS) ReadLink(name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return f.v.Readlink(name)
}

// ReadDir lists a directory, sorted by name.
func (f volumeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	entries, err := f.v.ReadDir(name)
	list := make([]fs.DirEntry, 0, len(entries))
	for _, e := range entries {
		in, bad := f.v.used(e.Ino)
		if bad != nil {
			if err == nil {
				err = &fs.PathError{Op: "readdir", Path: name, Err: bad}
			}
			continue
		}
		list = append(list, fs.FileInfoToDirEntry(info{e.Name, in}))
	}
	slices.SortStableFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, err
}

func baseName(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func infoOf(name string, in Inode, err error) (fs.FileInfo, error) {
	if err != nil {
		return nil, err
	}
	return info{baseName(name), in}, nil
}

// info is an fs.FileInfo.
type info struct {
	name string
	in   Inode
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.in.Size }
func (i info) Mode() fs.FileMode  { return i.in.FileMode() }
func (i info) ModTime() time.Time { return i.in.Mtime.Time() }
func (i info) IsDir() bool        { return i.in.IsDir() }
func (i info) Sys() any           { return &i.in }

// FileMode is the inode's mode in the words of io/fs.
func (in *Inode) FileMode() fs.FileMode {
	m := fs.FileMode(in.Mode & 0777)
	switch in.Mode & sIFMT {
	case sIFREG:
	case sIFDIR:
		m |= fs.ModeDir
	case sIFLNK:
		m |= fs.ModeSymlink
	case sIFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case sIFBLK:
		m |= fs.ModeDevice
	case sIFIFO:
		m |= fs.ModeNamedPipe
	case sIFSOCK:
		m |= fs.ModeSocket
	default:
		m |= fs.ModeIrregular
	}
	if in.Mode&04000 != 0 {
		m |= fs.ModeSetuid
	}
	if in.Mode&02000 != 0 {
		m |= fs.ModeSetgid
	}
	if in.Mode&01000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// openFile is an fs.File.
type openFile struct {
	info
	path string
	r    *io.SectionReader
	err  error // why it cannot be read
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

func (f *openFile) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.r.Read(p)
}

func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.r.ReadAt(p, off)
}

func (f *openFile) Seek(off int64, whence int) (int64, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.r.Seek(off, whence)
}

// openDir is an fs.ReadDirFile.
type openDir struct {
	openFile
	fs     volumeFS
	list   []fs.DirEntry
	listed bool
}

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.path, Err: syscall.EISDIR}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	var err error
	if !d.listed {
		d.list, err = d.fs.ReadDir(d.path)
		d.listed = true
	}
	if n <= 0 {
		list := d.list
		d.list = nil
		return list, err
	}
	if err == nil && len(d.list) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.list))
	list := d.list[:n]
	d.list = d.list[n:]
	return list, err
}
