package dump

import (
	"fmt"
	"os"
)

// plainFile is a file that is read by system calls.
type plainFile struct {
	*os.File
	size uint64
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
	return &plainFile{f, uint64(st.Size())}, nil
}

// Size is that of the file when it was opened, in bytes.
func (f *plainFile) Size() uint64 { return f.size }
