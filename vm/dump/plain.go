package dump

import (
	"context"
	"fmt"
	"os"
)

// plainFile is a file that is read by system calls.
type plainFile struct {
	*os.File
	size uint64
	ctx  context.Context // with which reads end; nil: they do not
}

// plain owns f from then on, also if it fails.
func plain(f *os.File) (source, error) {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file (%v)", f.Name(), st.Mode().Type())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &plainFile{File: f, size: uint64(st.Size())}, nil
}

// Size is that of the file when it was opened, in bytes.
func (f *plainFile) Size() uint64 { return f.size }

// ReadAt reads by system call.
func (f *plainFile) ReadAt(p []byte, off int64) (int, error) {
	if f.ctx != nil && f.ctx.Err() != nil {
		return 0, context.Cause(f.ctx)
	}
	return f.File.ReadAt(p, off)
}

// during makes reads of a file that nobody else has yet end with ctx, until done is called.
func during(ctx context.Context, src source) (done func()) {
	f, ok := src.(*plainFile)
	if !ok {
		return func() {}
	}
	f.ctx = ctx
	return func() { f.ctx = nil }
}
