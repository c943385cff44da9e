package ext4

// The features of Super.Compat that are named here. A file system with others can be read as well.
const (
	CompatHasJournal   = 0x4
	CompatExtAttr      = 0x8
	CompatResizeInode  = 0x10
	CompatDirIndex     = 0x20
	CompatSparseSuper2 = 0x200
	CompatFastCommit   = 0x400
	CompatStableInodes = 0x800
	CompatOrphanFile   = 0x1000
)

// The features of Super.Incompat. ParseSuper refuses a file system that has others.
const (
	IncompatCompression = 0x1 // was never in Linux
	IncompatFiletype    = 0x2
	IncompatRecover     = 0x4 // the journal is to be replayed
	IncompatJournalDev  = 0x8 // this is no file system but a journal of one
	IncompatMetaBG      = 0x10
	IncompatExtents     = 0x40
	Incompat64Bit       = 0x80
	IncompatMMP         = 0x100
	IncompatFlexBG      = 0x200
	IncompatEAInode     = 0x400
	IncompatDirData     = 0x1000 // Lustre's
	IncompatCsumSeed    = 0x2000
	IncompatLargeDir    = 0x4000
	IncompatInlineData  = 0x8000
	IncompatEncrypt     = 0x10000
	IncompatCasefold    = 0x20000

	incompatKnown = IncompatFiletype | IncompatRecover | IncompatMetaBG | IncompatExtents | Incompat64Bit | IncompatMMP |
		IncompatFlexBG | IncompatEAInode | IncompatCsumSeed | IncompatLargeDir | IncompatInlineData | IncompatEncrypt |
		IncompatCasefold
)

// The features of Super.ROCompat that are named here. A file system with others can be read as well.
const (
	ROCompatSparseSuper   = 0x1
	ROCompatLargeFile     = 0x2
	ROCompatHugeFile      = 0x8
	ROCompatGdtCsum       = 0x10
	ROCompatDirNlink      = 0x20
	ROCompatExtraIsize    = 0x40
	ROCompatQuota         = 0x100
	ROCompatBigalloc      = 0x200
	ROCompatMetadataCsum  = 0x400
	ROCompatProject       = 0x2000
	ROCompatVerity        = 0x8000
	ROCompatOrphanPresent = 0x10000 // the orphan file may hold entries
)

// The flags of Inode.Flags that are named here.
const (
	FlagImmutable  = 0x10
	FlagAppend     = 0x20
	FlagEncrypt    = 0x800  // content and, of a directory, names are ciphertext
	FlagIndex      = 0x1000 // a hashed directory
	FlagHugeFile   = 0x40000
	FlagExtents    = 0x80000
	FlagVerity     = 0x100000
	FlagEAInode    = 0x200000 // holds a large value of an extended attribute
	FlagInlineData = 0x10000000
	FlagProjInh    = 0x20000000
	FlagCasefold   = 0x40000000
)

// The inodes that have a meaning by their number.
const (
	BadBlocksInode = 1
	RootInode      = 2
	UserQuotaInode = 3
	GrpQuotaInode  = 4
	BootInode      = 5
	UndelInode     = 6
	ResizeInode    = 7
	JournalInode   = 8
)

// Flags of Group.Flags.
const (
	GroupInodeUninit = 0x1 // neither inode table nor bitmap are in use
	GroupBlockUninit = 0x2 // the block bitmap is not there yet
	GroupInodeZeroed = 0x4 // the unused rest of the inode table is zero
)

// HasJournal says that the file system keeps a journal.
func (s *Super) HasJournal() bool { return s.Compat&CompatHasJournal != 0 }

// MetadataCsum says that metadata carries checksums.
func (s *Super) MetadataCsum() bool { return s.ROCompat&ROCompatMetadataCsum != 0 }

func (s *Super) incompat(f uint32) bool { return s.Incompat&f != 0 }

func (s *Super) is64Bit() bool { return s.Incompat&Incompat64Bit != 0 }
