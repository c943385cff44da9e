// Package event holds the one form in which vmscope tells what happened in a guest.
package event

import "time"

// Op is what happened to a file or a file system.
type Op string

// The operations. docs/json.md and docs/events.md say which fields each carries.
const (
	MkDir    Op = "MKDIR"
	MkFile   Op = "MKFILE"
	RmDir    Op = "RMDIR"
	RmFile   Op = "RMFILE" // a name of anything but a directory went
	Rename   Op = "RENAME" // OldPath -> Path
	Link     Op = "LINK"   // Path is one more name of Inode; OldPath an older one, where one is known
	Symlink  Op = "SYMLINK"
	Mknod    Op = "MKNOD"
	Write    Op = "WRITE"
	Truncate Op = "TRUNCATE"
	Chmod    Op = "CHMOD"
	Chown    Op = "CHOWN"
	Xattr    Op = "XATTR"
	Mount    Op = "MOUNT"
	Unmount  Op = "UNMOUNT"
	Lost     Op = "LOST"     // writes were lost: the difference comes before the next ATTACHED, or Detail says that it does not
	Attached Op = "ATTACHED" // from here on the events are complete
)

// Details that readers may go by.
const (
	// Exchange is that of renames that are one step: names change places in a ring. They are adjacent, their paths are those
	// before the first of them, and the last leads to where the first began.
	Exchange = "exchange"
	// Encrypted says that names are ciphertext.
	Encrypted = "encrypted"
)

// Kind is what an inode is.
type Kind string

// The kinds of inodes.
const (
	File     Kind = "file"
	Dir      Kind = "dir"
	Lnk      Kind = "symlink"
	CharDev  Kind = "chardev"
	BlockDev Kind = "blockdev"
	FIFO     Kind = "fifo"
	Socket   Kind = "socket"
)

// Source is where the disk told it.
type Source string

// The sources.
const (
	Journal    Source = "journal"    // a committed transaction: exact
	FastCommit Source = "fastcommit" // a fast commit: exact
	Home       Source = "home"       // writes to the blocks' home places, grouped by flush or quiet: the end is right, the steps may not be
	Resync     Source = "resync"     // the net difference behind a loss, found by comparing trees: the end is right
)

// Event is one thing that happened in a guest's file system. Paths and targets are bytes that the guest chose, not
// always UTF-8: they are to be quoted or escaped where they are shown.
type Event struct {
	Seq     uint64 // rises by one from event to event of a watch
	Time    time.Time
	Op      Op
	Path    string // of the file system on the disk, "/" its root
	OldPath string // before a rename

	Inode      uint64
	Generation uint32
	Attr       *Attr // as of the end of the transaction; nil where it is not known

	// Offset and Length tell the bytes that a WRITE touched; Length is 0 where they are not known.
	Offset, Length int64
	Target         string // of a symbolic link
	Device         uint64 // of a device node, major<<32 | minor

	TID    uint64 // the journal's transaction; 0 without a journal
	Source Source
	Disk   string // name of the disk in the VM
	FS     string // name of the file system on it: partition or volume, and UUID
	Detail string // why, of LOST; anything else that a reader should know

	// Content holds the bytes of the file where the watch asks for them.
	Content *Content
}

// Attr is what an inode said of itself.
type Attr struct {
	Kind     Kind
	Mode     uint32 // permission bits, set-id and sticky bits: 07777
	UID, GID uint32
	Size     int64 // bytes
	Nlink    uint32
}

// Content is the content of a small file at the moment of a commit.
type Content struct {
	Data   []byte // the whole file, at most the watch's limit
	SHA256 [32]byte
	// Torn says that not all of the content was on the disk when the event was told: what is missing is zeros in Data.
	Torn bool
}
