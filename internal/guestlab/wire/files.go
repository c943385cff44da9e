package wire

// Mounting is a file system to mount by system call, with its directory made first. Options are as mount(8) takes them;
// the kernel is asked for what is no flag.
type Mounting struct {
	Device  string `json:"device"`
	Dir     string `json:"dir"`
	Type    string `json:"type"`
	Options string `json:"options,omitempty"`
	Unmount bool   `json:"unmount,omitempty"` // Dir instead; all else is ignored
}

// FSOps is a run of random file operations below a directory. What is done follows from the fields alone, apart from the
// errors of a full or limited file system; operations that fail as a file system may make them fail are passed over.
type FSOps struct {
	Dir   []byte `json:"dir"`
	Seed  uint64 `json:"seed"`
	Count int    `json:"count"`
	First int    `json:"first,omitempty"` // number of the first operation, for a run in pieces
	// One operation in so many is followed by an fsync of the file it touched, an fsync of a directory, or a sync of the
	// file system; 0: none.
	Fsync    int `json:"fsync,omitempty"`
	FsyncDir int `json:"fsync_dir,omitempty"`
	Sync     int `json:"sync,omitempty"`
	// Many is how many names a large directory gets; 0: there is none.
	Many int `json:"many,omitempty"`
	// MaxName leaves out names, and targets of symbolic links, that are longer; 0: none.
	MaxName int `json:"max_name,omitempty"`
	// MaxFile bounds the bytes of a file that are written at once, MaxXattr the value of an extended attribute.
	MaxFile  int `json:"max_file,omitempty"`  // default 64 KiB
	MaxXattr int `json:"max_xattr,omitempty"` // default 3000
	// Only restricts the kinds of operations to those named.
	Only []string `json:"only,omitempty"`
	// Prepare makes directories in Dir first, that no operation removes or renames: names of "keep…".
	Prepare []KeptDir `json:"prepare,omitempty"`
	// Tell asks for the list of what was done, a line an operation.
	Tell bool `json:"tell,omitempty"`
}

// KeptDir is a directory to make before the operations, with a property that what is made in it inherits.
type KeptDir struct {
	Name     string `json:"name"`
	Casefold bool   `json:"casefold,omitempty"`
	Encrypt  bool   `json:"encrypt,omitempty"` // by a version 2 policy, under a key that is the same each time
}

// FSTree asks for all files below a directory.
type FSTree struct {
	Dir     []byte `json:"dir"`
	Content bool   `json:"content,omitempty"` // with a hash of each regular file's content
	Locked  bool   `json:"locked,omitempty"`  // without the key of KeptDir.Encrypt: as one sees it who knows the disk alone
}

// File is a name in a file system, and its inode as the guest's system calls describe it.
type File struct {
	Path       []byte  `json:"path"` // "/" is the directory that was asked about
	Inode      uint64  `json:"ino"`
	Generation uint32  `json:"gen"`
	Kind       string  `json:"kind"` // as in package event
	Mode       uint32  `json:"mode"` // 07777
	UID        uint32  `json:"uid"`
	GID        uint32  `json:"gid"`
	Size       int64   `json:"size"`
	Nlink      uint32  `json:"nlink"`
	Target     []byte  `json:"target,omitempty"`    // of a symbolic link
	Device     uint64  `json:"dev,omitempty"`       // of a device node, major<<32 | minor
	Xattrs     []Xattr `json:"xattrs,omitempty"`    // by name
	Encrypted  bool    `json:"encrypted,omitempty"` // its content, its target, or the names in it
	Sum        string  `json:"sum,omitempty"`       // start of the SHA-256 of the content, in hexadecimal
}

// Xattr is an extended attribute.
type Xattr struct {
	Name []byte `json:"name"`
	Len  int    `json:"len"`
	Sum  string `json:"sum"` // start of the value's SHA-256, in hexadecimal
}
